"""Plans from problems: the search's result, written out and checked."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from stoa.planner.plan import Plan, Pool, Rented, Route, cost_of
from stoa.planner.problem import Problem
from stoa.planner.program.period import Routes
from stoa.planner.program.search import NoPlan, Search
from stoa.planner.program.view import View, view
from stoa.planner.program.whole import Solved
from stoa.planner.verify import BrokenPlan, verify

_SHARE_EPS = 1e-7


def solve(
    problem: Problem, *, gap: float = 0.001, time_limit_s: float = 60.0, threads: int | None = None
) -> Plan:
    """The cheapest plan, proved to within `gap` of the cost if time allows; the plan says how near it is. Unservable if some
    demand cannot be served by anything, NoPlan if the rules allow no plan."""
    search = Search(view(problem), gap, time_limit_s, threads or os.cpu_count() or 1)
    search.run()
    return _plan(search)


def sketch(problem: Problem) -> Plan:
    """A plan that keeps all rules, soon; usually a few percent above the cheapest."""
    search = Search(view(problem), 0.0, 60.0, os.cpu_count() or 1)
    search.first()
    return _plan(search)


def _plan(search: Search) -> Plan:
    best, problem = search.best, search.view.problem
    if best is None:
        raise NoPlan("no plan of whole machines was found in time")
    rented = _rented(search.view, best.periods)
    committed = zip(search.commitments.offers, best.reserved, strict=True)
    reserved = {(o.place, o.machine): int(n) for o, n in committed if n > 0}
    routes = routes_of(search.view, search.routes, best.periods)
    costs = cost_of(problem, rented, reserved, routes)
    if abs(costs.total - best.cost) > 1e-4 * max(1.0, costs.total):
        raise BrokenPlan(f"the search took it for {best.cost:.2f} USD, and it costs {costs.total:.2f}")
    took_s = time.monotonic() - search.began_s
    plan = Plan(rented, reserved, routes, costs, min(search.bound, costs.total), took_s, best.method)
    verify(plan, problem)
    return plan


def _rented(v: View, periods: Sequence[Solved]) -> tuple[Rented, ...]:
    found = []
    for m, (offer, j) in enumerate(v.options):
        counts = tuple(int(p.n[m]) for p in periods)
        if any(counts):
            found.append(Rented(v.pools[j], offer.purchase, counts))
    return tuple(found)


def routes_of(v: View, routes: Sequence[Routes], periods: Sequence[Solved]) -> tuple[Route, ...]:
    shares: dict[tuple[int, int, int], list[float]] = {}
    for t, (r, p) in enumerate(zip(routes, periods, strict=True)):
        for at in np.flatnonzero(p.x > _SHARE_EPS):
            key = (int(r.world[at]), int(r.bucket[at]), int(r.target[at]))
            shares.setdefault(key, [0.0] * len(periods))[t] = float(p.x[at])
    return tuple(
        Route(v.worlds[w].name, k, _target(v, i), tuple(row)) for (w, k, i), row in sorted(shares.items())
    )


def _target(v: View, i: int) -> Pool | str:
    return v.pools[i] if i < len(v.pools) else v.problem.apis[i - len(v.pools)].name
