"""What a live fleet must know that a problem does not say, from the document that the problem was read from: hours of the
clock, regions of clouds, patterns of rules, classes of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise

from stoa.fleet.policies.calendar import DAYS, Day, Span, clock_time
from stoa.planner.files.clock import read_clock
from stoa.planner.files.document import Document
from stoa.planner.files.residency import places_of
from stoa.planner.problem import Problem

CLASSES = ("interactive", "batch")  # of requests, in the service


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
    sources: Mapping[str, str] = field(default_factory=dict)  # hub ids or folders, by model

    def source(self, model: str) -> str:
        """What `stoa serve --model` takes; with OWNER in it, to be filled in, where nothing is known."""
        return self.sources.get(model, model if "/" in model else f"OWNER/{model}")


HOURS_OF_A_DAY = LiveFacts([range(24)] * 7)  # a period for each hour of a day


def live_facts(problem: Problem, document: Document) -> LiveFacts:
    """Raises ConfigError."""
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
    sources = {m.name: m.source for m in document.model if m.source is not None}
    return LiveFacts(hours, document.time_zone, sites, tuple(rules), classes, sources)


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
