"""What a deployment plan tells a fleet: the file that `stoa plan --apply` writes and `stoa serve --plan` reads.

JSON. Periods, places, groups and rules hold for the whole file; each base model has a section of its own. Tuples "by period"
stand in the order of `periods`. Nothing is left to guess: a place that is not listed is none, a project is served where its
group and all rules that name it let it and nowhere else, and a remote that neither weights nor overflow name gets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from stoa.errors import ConfigError
from stoa.fleet.policies.calendar import Calendar, Span, make_calendar

VERSION = 1
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
    """One base model's fleet. `imbalance_s`: how much longer a request may wait for the weights' sake."""

    targets: tuple[Target, ...] = ()
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


class _Version(msgspec.Struct, frozen=True):
    version: int


def read_plan(path: Path) -> FleetPlan:
    """Raises ConfigError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the plan {path} cannot be read: {error.strerror}", param="plan") from None
    return parse_plan(text, str(path))


def parse_plan(text: bytes | str, source: str) -> FleetPlan:
    """Checked. Raises ConfigError that names the source and what is accepted."""
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise ConfigError(f"{source}: version is {version}; accepted: {VERSION}", param="version")
        plan = msgspec.json.decode(text, type=FleetPlan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: {error}; it is written by stoa plan --apply", param="plan") from None
    try:
        check_plan(plan)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", param=error.param) from None
    return plan


def write_plan(plan: FleetPlan, path: Path) -> None:
    """In one step, so that a fleet that looks meanwhile finds the old or the new one. Raises ConfigError."""
    check_plan(plan)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", param="apply") from None


def calendar_of(plan: FleetPlan) -> Calendar:
    return make_calendar(plan.time_zone, [p.name for p in plan.periods], [p.hours for p in plan.periods])


def check_plan(plan: FleetPlan) -> None:
    """ConfigError for names that do not exist or stand twice, numbers that cannot be, and weights against residency."""
    _unique("period", (p.name for p in plan.periods))
    places = _unique("place", (p.name for p in plan.places))
    _unique("zone", (zone for p in plan.places for zone in dict.fromkeys((p.name, *p.zones, *p.regions))))
    _unique("remote", (remote for p in plan.places for remote in p.remotes))
    groups = _unique("group", (g.name for g in plan.groups))
    projects = _unique("project", (project for g in plan.groups for project in g.projects))
    if plan.groups and ANY not in projects:
        raise ConfigError(
            f'groups: none says what holds for projects that are not named; give one the project "{ANY}"',
            param="groups",
        )
    for name in (*places, *groups):
        if not name.strip() or name == ANY or name.startswith(REMOTE):
            raise ConfigError(f"{name!r} is no name for a place or a group", param="places")
    for group in plan.groups:
        _known(f"group {group.name}", "place", group.places, places | {ANY})
    for rule in plan.rules:
        _known(f"rule {rule.name}", "place", rule.places, places)
    calendar_of(plan)
    for model, section in plan.models.items():
        _check_targets(model, section, places, len(plan.periods))
        _check_weights(model, section, plan, places, groups)
        _check_overflow(model, section, groups)


def _check_targets(model: str, section: Section, places: set[str], periods: int) -> None:
    _unique(f"{model}: target", (f"{t.machine} at {t.place} ({t.market})" for t in section.targets))
    for t in section.targets:
        where = f"{model}: {t.machine} at {t.place} ({t.market})"
        _known(where, "place", (t.place,), places)
        _length(f"{where}: replicas", t.replicas, periods)
        for n in t.replicas:
            _within(f"{where}: replicas", n, 0, 1_000_000 if t.most is None else t.most)
        _within(f"{where}: most", t.most or 0, 0, 1_000_000)
        _within(f"{where}: availability", t.availability, 0, 1)


def _check_weights(model: str, section: Section, plan: FleetPlan, places: set[str], groups: set[str]) -> None:
    taken: set[tuple[str, str]] = set()
    for w in section.weights:
        _known(f"{model}: weights", "group", w.groups, groups)
        _known(f"{model}: weights", "place", w.places, places)
        for name, shares in (*w.places.items(), *w.remotes.items()):
            _length(f"{model}: weights of {name}", shares, len(plan.periods))
            for share in shares:
                _within(f"{model}: weights of {name}", share, 0, 1e9)
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
        _known(where, "group", rule.groups, groups)
        _within(f"{where}: wait_s", rule.wait_s, 0, 86_400)
        _within(f"{where}: most_share", rule.most_share, 0, 1)
    for remote, usd in section.daily_usd.items():
        _within(f"{model}: daily_usd of {remote}", usd, 0, 1e9)
    _within(f"{model}: imbalance_s", section.imbalance_s, 0, 86_400)


def _unique(what: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"the {what} {name!r} stands twice", param=f"{what}s")
        seen.add(name)
    return seen


def _known(where: str, what: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            accepted = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{where} names the {what} {name!r}; accepted: {accepted}", param=f"{what}s")


def _length(what: str, values: Sequence[object], wanted: int) -> None:
    if len(values) != wanted:
        raise ConfigError(f"{what}: {len(values)} entries for {wanted} periods", param="periods")


def _within(what: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(
            f"{what} is {value}; accepted: {least:g} to {most:g}", param=what.rpartition(": ")[2]
        )
