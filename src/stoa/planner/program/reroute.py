"""The cheapest routes for machines that are given: a linear program for each period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stoa.planner.plan import Rented, Route
from stoa.planner.problem import Problem
from stoa.planner.program.period import add_period, all_routes
from stoa.planner.program.solve import routes_of
from stoa.planner.program.view import Unservable, View, view
from stoa.planner.program.whole import Solved
from stoa.programs import Floats, NoOptimum, Program

_ANY = 10**6  # machines; with a limit, no option stands in for another


def reroute(rented: Sequence[Rented], problem: Problem) -> tuple[Route, ...] | None:
    """Routes of all worlds, or None if these machines cannot do all that is asked."""
    offers = tuple(replace(o, limit=_ANY) if o.limit is None else o for o in problem.offers)
    try:
        v = view(replace(problem, offers=offers))
    except Unservable:
        return None
    counts = _counts(v, rented)
    routes, found = [], []
    for t in range(len(problem.periods)):
        there = np.zeros(len(v.pools) + len(problem.apis), np.bool_)
        there[v.pool_of[counts[:, t] > 0]] = there[len(v.pools) :] = True
        every = all_routes(v, t)
        routes.append(every.pick(there[every.target]))
        program = Program()
        rows = add_period(program, v, t, routes[t], price=np.zeros(len(v.options)), most=counts[:, t])
        try:
            x = program.solve(methods=(("simplex", "on"),)).x
        except NoOptimum:
            return None
        found.append(Solved(0.0, 0.0, counts[:, t], x[rows.x]))
    return routes_of(v, routes, found)


def _counts(v: View, rented: Sequence[Rented]) -> Floats:
    """[M, T] machines of the view's options."""
    known = {(r.pool, r.purchase): r.counts for r in rented}
    none = (0,) * len(v.hours)
    rows = [known.get((v.pools[j], offer.purchase), none) for offer, j in v.options]
    return np.array(rows, np.float64).reshape(len(v.options), len(v.hours))
