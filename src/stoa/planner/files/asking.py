"""Services, and which of them a request belongs to; where requests come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from textwrap import shorten

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.demand import Kind, Who
from stoa.planner.files.residency import Residency
from stoa.planner.problem import Service

_KNOWN = 200  # letters of the list of projects


def read_services(entries: Sequence[doc.Service]) -> tuple[Service, ...]:
    found = []
    for i, entry in enumerate(entries):
        at = f"service[{i}]"
        if not entry.models:
            raise ConfigError(f"{at}: {entry.name} may be answered by no model", param=f"{at}.models")
        tpot_s = math.inf if entry.tpot is None else units.seconds(entry.tpot, f"{at}.tpot")
        found.append(
            Service(
                entry.name,
                entry.models,
                units.seconds(entry.ttft, f"{at}.ttft"),
                tpot_s,
                units.share(entry.attainment, f"{at}.attainment"),
                entry.survives,
            )
        )
    if not found:
        raise ConfigError("there is no [[service]]; accepted: one at least", param="service")
    return tuple(found)


def kinds(document: doc.Document, residency: Residency) -> Callable[[Who], Kind]:
    """Which service, group and origin a request has: the first service that matches, all rules that name its project, the
    first origin. ConfigError for a request that no service takes."""

    def kind_of(who: Who) -> Kind:
        service = next((s.name for s in document.service if _matches(s.match, who)), None)
        if service is None:
            said = ", ".join(f"{name} {value!r}" for name, value in who._asdict().items() if value)
            raise ConfigError(
                f"no service takes requests with {said or 'neither project, class nor model'}; accepted: a last [[service]] "
                "without match, which takes all others",
                param="service",
            )
        origin = next((o.name for o in document.origin if _any(o.projects, who.project)), "")
        return Kind(service, residency.groups[residency.number(who.project)].name, origin)

    return kind_of


def unheard(document: doc.Document, projects: Collection[str]) -> tuple[str, ...]:
    """What to say of patterns of projects that fit none of the demand's: a misspelt rule keeps nobody."""
    named = [(f"rule {r.name}", r.projects) for r in document.rule]
    named += [(f"service {s.name}", s.match.projects) for s in document.service if s.match.projects]
    named += [(f"origin {o.name}", o.projects) for o in document.origin]
    known = shorten(", ".join(sorted(filter(None, projects))), _KNOWN) or "none with a name"
    return tuple(
        f"{what} fits no project of the demand ({', '.join(patterns)}); those are {known}"
        for what, patterns in named
        if "*" not in patterns and not any(_any(patterns, project) for project in projects)
    )


def _matches(match: doc.Match, who: Who) -> bool:
    """Lists that are not given match everything."""
    parts = ((match.projects, who.project), (match.classes, who.service_class), (match.models, who.model))
    return all(not patterns or _any(patterns, value) for patterns, value in parts)


def _any(patterns: Sequence[str], value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)
