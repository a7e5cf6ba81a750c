"""What a deployment plan tells a fleet: the file that `stoa plan --apply` writes and `stoa serve --plan` reads.

JSON. Periods, places, groups and rules hold for the whole file; each base model has a section of its own. Tuples "by period"
stand in the order of `periods`. Nothing is left to guess: a place that is not listed is none, a project is served where its
group and all rules that name it let it and nowhere else, and a remote that neither weights nor overflow name gets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from stoa.checks import known, length, unique, within
from stoa.errors import ConfigError
from stoa.fleet.policies.calendar import Calendar, Span, make_calendar
from stoa.versioned import decode, read_bytes, write_bytes

VERSION = 1
UNKNOWN = frozenset({"local", "default"})  # what machines that do not say where they are have for a zone
ANY = "*"  # of projects: those that no group names; of places: everywhere, unknown places too
REMOTE = "remote:"  # no place's name begins so
Purchase = Literal["owned", "reserved", "on_demand", "spot"]
Served = Literal["", "interactive", "batch"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused: a word that nobody heeds may have been meant as a rule."""


class PeriodPart(_Part, frozen=True, kw_only=True):
    name: str
    hours: tuple[Span, ...]


class PlacePart(_Part, frozen=True, kw_only=True):
    """`zones`: what machines there call their zone, beside the place's own name. `regions`: all zones that are named after
    them as clouds do: eu-west-1a, us-central1-a, westeurope-2. `remotes`: services of our own there, which stand for the
    place's replicas and need no weight or overflow."""

    name: str
    zones: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    remotes: tuple[str, ...] = ()


class GroupPart(_Part, frozen=True, kw_only=True):
    """Where requests of its projects may be served."""

    name: str
    projects: tuple[str, ...]  # ids; "*": those that no group names
    places: tuple[str, ...]  # "*": anywhere


class RulePart(_Part, frozen=True, kw_only=True):
    """Residency of projects beside their groups', by patterns (`*`, `?`, `[…]`) that also fit projects yet to come."""

    name: str
    projects: tuple[str, ...]
    places: tuple[str, ...]


class Target(_Part, frozen=True, kw_only=True):
    """Replicas wanted of a kind of machine. `most`: beyond `replicas`, what demand may bring; None: any number.
    `availability`: the plan counts on so much of them; of spot machines it asks for more than it counts on."""

    place: str
    machine: str
    market: Purchase
    replicas: tuple[int, ...]  # by period
    most: int | None = None
    availability: float = 1.0


class Weights(_Part, frozen=True, kw_only=True):
    """Shares of these groups' requests, by period. Those of a period are taken relative to their sum; where that is 0,
    nothing is steered."""

    groups: tuple[str, ...] = ()  # empty: all
    service: Served = ""  # class of requests; "": those for which no other weights are given
    places: dict[str, tuple[float, ...]] = {}
    remotes: dict[str, tuple[float, ...]] = {}


class Overflow(_Part, frozen=True, kw_only=True):
    """When requests may go to a remote beyond what weights send there."""

    remote: str
    groups: tuple[str, ...] = ()  # empty: all that may be served there
    service: Served = ""  # "": both
    after: Literal["wait", "no_replica"] = "wait"
    wait_s: float = 2.0  # after "wait": they would wait longer than that at every replica of ours
    most_share: float = 1.0  # of the requests that the rule is for


class Section(_Part, frozen=True, kw_only=True):
    """One base model's fleet. `demand`: requests a second that the targets are for, by period; where fewer come, fewer
    replicas stand ready. `imbalance_s`: how much longer a request may wait for the weights' sake."""

    targets: tuple[Target, ...] = ()
    demand: tuple[float, ...] = ()  # none: targets stand whatever comes
    weights: tuple[Weights, ...] = ()
    overflow: tuple[Overflow, ...] = ()
    daily_usd: dict[str, float] = {}  # most that a remote may cost in a UTC day
    imbalance_s: float = 0.5


class FleetPlan(_Part, frozen=True, kw_only=True):
    version: int
    periods: tuple[PeriodPart, ...]
    models: dict[str, Section]
    time_zone: str = "UTC"
    places: tuple[PlacePart, ...] = ()
    groups: tuple[GroupPart, ...] = ()  # none: every project may be served anywhere, but for rules
    rules: tuple[RulePart, ...] = ()
    made: str = ""  # when and from what, for people


def read_plan(path: Path) -> FleetPlan:
    """Raises ConfigError."""
    return parse_plan(read_bytes(path), str(path))


def parse_plan(text: bytes | str, source: str) -> FleetPlan:
    """Checked. Raises ConfigError that names the source and what is accepted."""
    return decode(text, source, FleetPlan, VERSION, check_plan, "stoa plan --apply")


def plan_json(plan: FleetPlan) -> bytes:
    """Raises ConfigError."""
    check_plan(plan)
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def write_plan(plan: FleetPlan, path: Path) -> None:
    """In one step, so that a fleet that looks meanwhile finds the old or the new one. Raises ConfigError."""
    write_bytes(plan_json(plan), path)


def calendar_of(plan: FleetPlan) -> Calendar:
    return make_calendar(plan.time_zone, [p.name for p in plan.periods], [p.hours for p in plan.periods])


def check_plan(plan: FleetPlan) -> None:
    """ConfigError for names that do not exist or stand twice, numbers that cannot be, and weights against residency."""
    unique("period", (p.name for p in plan.periods))
    places = unique("place", (p.name for p in plan.places))
    unique("zone", (zone for p in plan.places for zone in dict.fromkeys((p.name, *p.zones, *p.regions))))
    unique("remote", (remote for p in plan.places for remote in p.remotes))
    groups = unique("group", (g.name for g in plan.groups))
    projects = unique("project", (project for g in plan.groups for project in g.projects))
    if plan.groups and ANY not in projects:
        raise ConfigError(
            f'groups: none says what holds for projects that are not named; give one the project "{ANY}"',
            param="groups",
        )
    for name in UNKNOWN & places:
        raise ConfigError(
            f"place {name!r}: machines that do not say where they are have a zone called so; accepted: another name",
            param="places",
        )
    for group in plan.groups:
        _check_words(f"group {group.name}", [p for p in group.projects if p != ANY])
        if odd := next((p for p in group.projects if p != ANY and set(p) & set("*?[")), None):
            raise ConfigError(
                f"group {group.name} names the project {odd!r}; accepted: ids; patterns stand in rules",
                param="projects",
            )
    for rule in plan.rules:
        _check_words(f"rule {rule.name}", rule.projects)
        if not rule.projects:
            raise ConfigError(f"rule {rule.name} names no projects", param="projects")
    for name in (*places, *groups):
        if not name.strip() or name == ANY or name.startswith(REMOTE):
            raise ConfigError(f"{name!r} is no name for a place or a group", param="places")
    for group in plan.groups:
        known(f"group {group.name}", "place", group.places, places | {ANY})
    for rule in plan.rules:
        known(f"rule {rule.name}", "place", rule.places, places)
    calendar_of(plan)
    for model, section in plan.models.items():
        _check_targets(model, section, places, len(plan.periods))
        if section.demand:
            length(f"{model}: demand", section.demand, len(plan.periods))
        for rate in section.demand:
            within(f"{model}: demand", rate, 0, 1e9)
        _check_weights(model, section, plan, places, groups)
        _check_overflow(model, section, groups)


def _check_words(where: str, projects: Sequence[str]) -> None:
    """ConfigError for what no id can fit: it would keep nobody."""
    for word in projects:
        if word != word.strip() or not word or word.count("[") > word.count("]"):
            raise ConfigError(
                f"{where} names the project {word!r}; accepted: ids, and in rules patterns such as proj_*",
                param="projects",
            )


def _check_targets(model: str, section: Section, places: set[str], periods: int) -> None:
    unique(f"{model}: target", (f"{t.machine} at {t.place} ({t.market})" for t in section.targets))
    for t in section.targets:
        where = f"{model}: {t.machine} at {t.place} ({t.market})"
        known(where, "place", (t.place,), places)
        length(f"{where}: replicas", t.replicas, periods)
        for n in t.replicas:
            within(f"{where}: replicas", n, 0, 1_000_000 if t.most is None else t.most)
        within(f"{where}: most", t.most or 0, 0, 1_000_000)
        within(f"{where}: availability", t.availability, 0, 1)


def _check_weights(model: str, section: Section, plan: FleetPlan, places: set[str], groups: set[str]) -> None:
    taken: set[tuple[str, str]] = set()
    for w in section.weights:
        known(f"{model}: weights", "group", w.groups, groups)
        known(f"{model}: weights", "place", w.places, places)
        for name, shares in (*w.places.items(), *w.remotes.items()):
            length(f"{model}: weights of {name}", shares, len(plan.periods))
            for share in shares:
                within(f"{model}: weights of {name}", share, 0, 1e9)
        for group in w.groups or sorted(groups) or [""]:
            if (w.service, group) in taken:
                raise ConfigError(
                    f"{model}: weights of the group {group!r} stand twice for service {w.service!r}",
                    param="weights",
                )
            taken.add((w.service, group))
            allowed = next((g.places for g in plan.groups if g.name == group), (ANY,))
            against = (
                [] if ANY in allowed else sorted(p for p in w.places if p not in allowed and any(w.places[p]))
            )
            if against:
                raise ConfigError(
                    f"{model}: weights send the group {group!r} to {', '.join(against)}, where it may not be served",
                    param="weights",
                )


def _check_overflow(model: str, section: Section, groups: set[str]) -> None:
    for rule in section.overflow:
        where = f"{model}: overflow to {rule.remote}"
        known(where, "group", rule.groups, groups)
        within(f"{where}: wait_s", rule.wait_s, 0, 86_400)
        within(f"{where}: most_share", rule.most_share, 0, 1)
    for remote, usd in section.daily_usd.items():
        within(f"{model}: daily_usd of {remote}", usd, 0, 1e9)
    within(f"{model}: imbalance_s", section.imbalance_s, 0, 86_400)
