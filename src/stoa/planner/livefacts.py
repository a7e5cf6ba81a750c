"""What a live fleet must know that a problem does not say: hours of the clock, regions of clouds, patterns of rules, classes
of requests. From the document that the problem was read from, or as far as the problem's own names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from stoa.errors import ConfigError
from stoa.fleet.policies.calendar import DAYS, Day, Span, clock_time
from stoa.planner.problem import Period, Place, Problem

if TYPE_CHECKING:
    from stoa.planner.files.document import Document

CLASSES = ("interactive", "batch")  # of requests, in the service
PROVIDERS = ("aws", "gcp", "azure")
WEEK_H = 168.0
_REGION = re.compile(
    r"[a-z]+(?:-[a-z]+)+-?\d+|[a-z]{2,}(?:east|west|north|south|central|europe|asia)[a-z]*\d?"
)


@dataclass(frozen=True, slots=True)
class Site:
    """A place as clouds call it; all "" where it is nobody's cloud."""

    provider: str = ""
    region: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Patterns:
    """A rule of residency as it was written: patterns of projects, and the places that it leaves them."""

    name: str
    projects: tuple[str, ...]
    places: frozenset[str]


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """`hours` [7, 24]: the period of each weekday's hours, Monday's first. `classes`: of services that are not for all."""

    hours: Sequence[Sequence[int]]
    time_zone: str = "UTC"
    sites: Mapping[str, Site] = field(default_factory=dict)  # by place
    rules: tuple[Patterns, ...] = ()
    classes: Mapping[str, frozenset[str]] = field(default_factory=dict)


def live_facts(problem: Problem, document: Document | None = None) -> LiveFacts:
    """ConfigError where nothing tells which hours the periods are."""
    if document is None:
        sites = {place.name: guessed_site(place) for place in problem.places}
        return LiveFacts(guessed_hours(problem.periods), sites=sites)
    from stoa.planner.files.clock import read_clock  # with numpy and more, of use only here
    from stoa.planner.files.residency import places_of

    sites = {p.name: Site(p.provider, p.region or "", p.zone or "") for p in document.place}
    every = frozenset(p.name for p in problem.places)
    rules = []
    for i, rule in enumerate(document.rule):
        only = every if rule.only is None else places_of(rule.only, problem.places, f"rule[{i}].only")
        never = places_of(rule.never, problem.places, f"rule[{i}].never")
        rules.append(Patterns(rule.name, rule.projects, only - never))
    classes = {
        s.name: frozenset(c for c in CLASSES if any(fnmatchcase(c, p) for p in s.match.classes))
        for s in document.service
        if s.match.classes
    }
    hours = read_clock(document.periods, document.time_zone).index.tolist()
    return LiveFacts(hours, document.time_zone, sites, tuple(rules), classes)


def slugs(names: Iterable[str], most: int = 24) -> dict[str, str]:
    """Names as labels, files and hosts can bear them: lower case, digits and hyphens; no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:most].strip("-") or "x"
        slug, number = plain, 2
        while slug in found.values():
            slug, number = f"{plain}-{number}", number + 1
        found[name] = slug
    return found


def guessed_site(place: Place) -> Site:
    """From its name and labels: aws/eu-west-1, or labels such as "gcp" and "us-central1"."""
    words = {*place.labels, *place.name.split("/")}
    provider = next((p for p in PROVIDERS if p in words), "")
    regions = sorted((w for w in words - {provider} if _REGION.fullmatch(w)), key=len)
    return Site(provider, regions[-1] if provider and regions else "")


def guessed_hours(periods: Sequence[Period]) -> list[list[int]]:
    """Periods that follow each other from midnight on, each day, or each weekday and then each day of a weekend, or through
    a week from Monday on. ConfigError for others."""
    starts, hour = [], 0.0
    for p in periods:
        starts.append(hour)
        hour += p.hours
    if len(periods) == 1:
        return [[0] * 24 for _ in DAYS]
    line = [sum(s <= h for s in starts) - 1 for h in range(round(hour))]
    whole = all(s == round(s) for s in (*starts, hour))
    if whole and hour == 24:
        return [line] * 7
    if whole and hour == 48 and starts.count(24.0) and _are_weekdays_and_weekend(periods, starts):
        return [line[:24]] * 5 + [line[24:]] * 2
    if whole and hour == WEEK_H:
        return [line[24 * d : 24 * (d + 1)] for d in range(7)]
    raise ConfigError(
        f"the periods {periods[0].name} … {periods[-1].name} say nothing of the clock; accepted: whole hours of a day, of "
        "a weekday and a day of the weekend, or of a week; or the document that they were read from",
        param="periods",
    )


def _are_weekdays_and_weekend(periods: Sequence[Period], starts: Sequence[float]) -> bool:
    times = [
        {round(p.times, 6) for p, s in zip(periods, starts, strict=True) if (s < 24) == first}
        for first in (True, False)
    ]
    return all(len(t) == 1 for t in times) and abs(2 * times[0].pop() - 5 * times[1].pop()) < 1e-3


def spans(hours: Sequence[Sequence[int]], period: int) -> tuple[Span, ...]:
    """A period's hours; days with the same ones together."""
    days: dict[tuple[int, int], list[Day]] = {}
    for day, line in zip(DAYS, hours, strict=True):
        edges = [h for h in range(25) if h in (0, 24) or line[h] != line[h - 1]]
        for start, end in pairwise(edges):
            if line[start] == period:
                days.setdefault((start, end), []).append(day)
    return tuple(
        Span(days=tuple(d), start=clock_time(60 * start), end=clock_time(60 * end))
        for (start, end), d in days.items()
    )
