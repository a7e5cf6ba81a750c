"""Changes of a problem that people can make: another limit, budget or target, a promise less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stoa.planner.eligible import allow_late
from stoa.planner.files.throughput import Replica, fits_of
from stoa.planner.problem import Problem

Kind = Literal[
    "machines",
    "budget",
    "carbon",
    "ramp",
    "requests",
    "tokens",
    "survives",
    "places",
    "ttft",
    "tpot",
    "attainment",
]


@dataclass(frozen=True, slots=True)
class Change:
    """`name`: of the offer, API, service or group; "" for rules of the whole. `to` instead of `before`: machines, USD, kg,
    requests or tokens a second, seconds. `place`: where the group may be computed besides. `usd`: how big the change is, to
    compare it with others; not what it costs. Not `sure`: a smaller one may do."""

    kind: Kind
    name: str = ""
    to: float = 0.0
    before: float = 0.0
    place: str = ""
    usd: float = 0.0
    sure: bool = True
    rules: tuple[str, ...] = ()  # of residency, as the user wrote them: those that forbid the place

    @property
    def words(self) -> str:
        to, before = f"{self.to:,.6g}", f"{self.before:,.6g}"
        match self.kind:
            case "machines":
                return f"{self.to - self.before:.0f} more {self.name}: {to} instead of {before}"
            case "budget":
                least = f"at least {to} USD" if self.sure else f"{to} USD (perhaps less)"
                return f"a budget of {least} instead of {before} USD"
            case "carbon":
                return f"a carbon limit of at least {to} kg instead of {before}"
            case "ramp":
                return f"{to} machines instead of {before} that may come or go between two periods"
            case "requests" | "tokens":
                return f"{to} {self.kind} a second instead of {before} from {self.name}"
            case "survives":
                return f"no promise that requests of {self.name} are served after the loss of a place or of spot machines"
            case "ttft":
                return f"{to} s instead of {before} s to the first token of {self.name}"
            case "tpot":
                return f"{to} s instead of {before} s for each further token of {self.name}"
            case "attainment":
                return (
                    f"a promise for {100 * self.to:.4g} % instead of {100 * self.before:.4g} % of {self.name}; the rest "
                    "may come late"
                )
            case "places":
                against = f', against the rule "{"; ".join(self.rules)}"' if self.rules else ""
                return f"requests of {self.name} may be computed at {self.place} too{against}"


def applied(problem: Problem, changes: Sequence[Change]) -> Problem:
    """The problem with these changes. Loads under other targets are reckoned again if all replicas have profiles; given
    ones are kept."""
    for change in changes:
        problem = _applied(problem, change)
    kinds = {c.kind for c in changes}
    if "attainment" in kinds:
        problem = replace(problem, buckets=allow_late(problem)[0])
    return _refitted(problem) if kinds & {"ttft", "tpot", "attainment"} else problem


def _applied(problem: Problem, c: Change) -> Problem:
    rules = problem.rules
    match c.kind:
        case "machines":
            offers = [replace(o, limit=int(c.to)) if o.name == c.name else o for o in problem.offers]
            return replace(problem, offers=tuple(offers))
        case "budget":
            return replace(problem, rules=replace(rules, budget_usd=c.to))
        case "carbon":
            return replace(problem, rules=replace(rules, carbon_kg=c.to))
        case "ramp":
            return replace(problem, rules=replace(rules, ramp=int(c.to)))
        case "requests":
            apis = [replace(a, requests_per_s=c.to) if a.name == c.name else a for a in problem.apis]
            return replace(problem, apis=tuple(apis))
        case "tokens":
            apis = [replace(a, tokens_per_s=c.to) if a.name == c.name else a for a in problem.apis]
            return replace(problem, apis=tuple(apis))
        case "survives":
            services = [replace(s, survives=False) if s.name == c.name else s for s in problem.services]
            return replace(problem, services=tuple(services))
        case "ttft":
            services = [replace(s, ttft_s=c.to) if s.name == c.name else s for s in problem.services]
            return replace(problem, services=tuple(services))
        case "tpot":
            services = [replace(s, tpot_s=c.to) if s.name == c.name else s for s in problem.services]
            return replace(problem, services=tuple(services))
        case "attainment":
            services = [replace(s, attainment=c.to) if s.name == c.name else s for s in problem.services]
            return replace(problem, services=tuple(services))
        case "places":
            more = frozenset({c.place})
            groups = [replace(g, places=g.places | more) if g.name == c.name else g for g in problem.groups]
            return replace(problem, groups=tuple(groups))


def _refitted(problem: Problem) -> Problem:
    replicas = {}
    for fit in problem.fits:
        if fit.profile is None:
            return problem
        replicas[fit.machine, fit.model] = Replica(
            fit.machine, fit.model, fit.profile, fit.source, fit.why, fit.adapters_gib
        )
    services = {s.name: s for s in problem.services}
    return replace(
        problem, fits=fits_of(tuple(replicas.values()), problem.buckets, services, problem.network)
    )


def rounded_up(value: float, digits: int = 3) -> float:
    """At or above, with so many digits that count."""
    if value <= 0 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.{digits + 2}g}")
