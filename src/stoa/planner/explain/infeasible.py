"""The cheapest change that would make a plan possible, where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from stoa.planner.explain.changes import Change, applied, rounded_up
from stoa.planner.explain.elastic import bends
from stoa.planner.explain.targets import unserved, ways_to_serve
from stoa.planner.problem import Problem
from stoa.planner.program import NoPlan, Unservable, solve
from stoa.planner.verify import verify

Way = tuple[Change, ...]
_ANY = 0.05  # gap of a plan that only shows that a way leads out
_GAP = 0.002  # of one that says how large a budget must be
_SURE = 0.01  # gap up to which that budget is the least
_LAW = frozenset({"places"})  # bent only if nothing else helps, or alone
_TRIES = 5


def cheapest_change(problem: Problem, *, time_limit_s: float = 60.0) -> Way:
    """The changes that are together the least (`elastic` says how that is counted) and allow a plan; none if nothing that we
    know of does, or the problem has a plan already. They have been tried: there is a plan of `applied(problem, changes)`."""
    return next(iter(_Search(problem, time_limit_s).ways(most=1)), ())


def ways_out(problem: Problem, *, time_limit_s: float = 60.0) -> tuple[Way, ...]:
    """The cheapest change, then what would do alone: machines, budget, carbon, ramp, APIs, promises of survival, places.
    Each has been tried. Empty if none was found in time."""
    return tuple(_Search(problem, time_limit_s).ways())


def in_words(ways: Sequence[Way]) -> str:
    """A numbered list, the cheapest change first."""
    if not ways:
        return "No change was found that would allow a plan; a longer search may find one."
    lines = ["What would allow a plan, the least change first:"]
    for number, way in enumerate(ways, 1):
        either = f"{number}. " + ("or " if number > 1 else "")
        if len(way) == 1:
            lines.append(either + way[0].words)
        else:
            lines += [f"{either}all of this:", *(f"   - {change.words}" for change in way)]
    return "\n".join(lines)


class _Search:
    def __init__(self, problem: Problem, time_limit_s: float) -> None:
        self.problem = problem
        self.until_s = time.monotonic() + time_limit_s

    def ways(self, most: int = 100) -> list[Way]:
        found: list[Way] = []
        for begun in ways_to_serve(self.problem) if unserved(self.problem) else [()]:
            problem = applied(self.problem, begun)
            if begun and self._tried(problem, (), frozenset()) is not None:
                found.append(begun)
                continue
            there = _there(problem)
            together = self._way(problem, there - _LAW) or self._way(problem, there)
            alone = sorted(there) if together and most > 1 else []
            ways = [together, *(self._way(problem, frozenset({kind})) for kind in alone)]
            found += [(*begun, *way) for way in ways if way]
        different: dict[frozenset[tuple[str, str, str]], Way] = {}
        for way in found:
            different.setdefault(frozenset((c.kind, c.name, c.place) for c in way), way)
        return list(different.values())[:most]

    def _left_s(self) -> float:
        return self.until_s - time.monotonic()

    def _way(self, problem: Problem, kinds: frozenset[str]) -> Way | None:
        if kinds == {"budget"}:
            return self._tried(problem, (), kinds)
        changes = bends(problem, kinds, max(0.5, min(5.0, self._left_s() / 4)))
        return None if changes is None else self._tried(problem, changes, kinds)

    def _tried(self, problem: Problem, changes: Way, kinds: frozenset[str]) -> Way | None:
        """These, or somewhat more, as soon as there is a plan."""
        way: Way | None = changes
        for _ in range(_TRIES):
            if way is None or self._left_s() <= 0:
                return None
            after = applied(problem, way)
            budget = after.rules.budget_usd
            free = replace(after, rules=replace(after.rules, budget_usd=None))
            try:
                gap = _ANY if budget is None else _GAP
                plan = solve(free, gap=gap, time_limit_s=max(1.0, min(20.0, self._left_s() / 2)))
            except (NoPlan, Unservable):
                way = _somewhat_more(way)
                continue
            if budget is None or plan.costs.total <= budget:
                return way
            if "budget" in kinds:
                way = _with_budget(problem, way, rounded_up(plan.costs.total), plan.gap <= _SURE)
                verify(plan, applied(problem, way))
                return way
            way = _somewhat_more(way)
        return None


def _there(problem: Problem) -> frozenset[str]:
    """Kinds of bends that the problem has something of."""
    rules = problem.rules
    there = {
        "machines": any(o.limit for o in problem.offers),
        "budget": rules.budget_usd is not None,
        "carbon": rules.carbon_kg is not None,
        "ramp": rules.ramp is not None,
        "apis": any(min(a.requests_per_s, a.tokens_per_s) < float("inf") for a in problem.apis),
        "survival": rules.survive_place or rules.survive_spot,
        "places": any(g.places < {p.name for p in problem.places} for g in problem.groups),
    }
    return frozenset(kind for kind, some in there.items() if some)


def _with_budget(problem: Problem, way: Way, to: float, sure: bool) -> Way:
    before = problem.rules.budget_usd or 0.0
    others = tuple(c for c in way if c.kind != "budget")
    return (*others, Change("budget", "", to, before, usd=to - before, sure=sure))


def _somewhat_more(way: Way) -> Way | None:
    """None if there is nothing that could be more."""
    more = tuple(_more(c) for c in way)
    return more if more != way else None


def _more(c: Change) -> Change:
    if c.kind in ("machines", "ramp"):
        return replace(c, to=c.to + 1, usd=c.usd * (c.to + 1 - c.before) / (c.to - c.before))
    if c.kind in ("carbon", "requests", "tokens"):
        to = rounded_up(c.to * 1.03)
        return replace(c, to=to, usd=c.usd * (to - c.before) / (c.to - c.before))
    return c
