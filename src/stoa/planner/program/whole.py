"""Whole machines, one period at a time. Two programs of a period:

given R     reserved machines up to what is committed to, free of charge: together with R's price, a plan
priced      reserved machines at the period's part of a commitment's price: the sum of all periods is a lower bound for
            every plan (Lagrangian relaxation of C4), whatever the parts are, as long as they sum to that price

Losses are in neither: they cut off machines that would not do (`losses.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from stoa.planner.program.joint import Commitments, limits, prices
from stoa.planner.program.losses import Losses, without_losses
from stoa.planner.program.period import Routes, add_period
from stoa.planner.program.view import View
from stoa.programs import Floats, Places, Program


@dataclass(frozen=True, slots=True)
class Solved:
    """Of one period: USD, lower bound, machines [M], shares [routes]. If only a bound was found, USD are infinite."""

    cost: float
    bound: float
    n: Floats
    x: Floats


_MORE, _LEAST_S = 2.5, 0.05
Known = Sequence[Solved] | None


@dataclass(frozen=True, slots=True)
class Effort:
    gap: float
    time_limit_s: float  # for all periods together
    threads: int


def given(
    v: View,
    routes: Sequence[Routes],
    losses: Sequence[Losses],
    c: Commitments,
    reserved: Floats,
    effort: Effort,
    known: Known = None,
) -> list[Solved]:
    """`known`: a plan to better. NoOptimum if some period has no plan with these commitments."""
    most = most_machines(v, c, reserved)

    def solve(t: int, time_limit_s: float) -> Solved:
        mine = replace(effort, time_limit_s=time_limit_s)
        return _solve(v, t, routes[t], losses[t], prices(v, t), most, mine, known, c, reserved)

    return _each(solve, len(routes), effort)


def priced(
    v: View, routes: Sequence[Routes], losses: Sequence[Losses], c: Commitments, parts: Floats, effort: Effort
) -> list[Solved]:
    """`parts` [T, C]: USD. Begun from nothing: a plan for other prices leads the search astray."""
    mine = np.flatnonzero(c.of_option >= 0)

    def solve(t: int, time_limit_s: float) -> Solved:
        price = prices(v, t)
        price[mine] = parts[t, c.of_option[mine]]
        return _solve(
            v, t, routes[t], losses[t], price, limits(v), replace(effort, time_limit_s=time_limit_s)
        )

    return _each(solve, len(routes), effort)


def most_machines(v: View, c: Commitments, reserved: Floats) -> Floats:
    """[M]"""
    mine = np.flatnonzero(c.of_option >= 0)
    most = limits(v)
    most[mine] = np.minimum(most[mine], reserved[c.of_option[mine]])
    return most


def share_reserved(program: Program, c: Commitments, n: Places, reserved: Floats) -> None:
    """C4 with known commitments."""
    mine = np.flatnonzero(c.of_option >= 0)
    shared = program.row((len(c.offers),), high=reserved)
    program.add((n[mine], 1.0), into=shared[c.of_option[mine]])


def _solve(
    v: View,
    t: int,
    routes: Routes,
    losses: Losses,
    price: Floats,
    most: Floats,
    effort: Effort,
    known: Known = None,
    c: Commitments | None = None,
    reserved: Floats | None = None,
) -> Solved:
    """First parts of machines, then whole ones, each until no loss finds them too few."""
    likely, usual_routes, usual = without_losses(v, routes)
    until_s, whole = time.monotonic() + effort.time_limit_s, not losses
    start = None if known is None else np.concatenate([known[t].n, known[t].x[usual]])
    bound, x = -np.inf, np.zeros(len(routes))
    while (left_s := until_s - time.monotonic()) > 0 or bound == -np.inf:
        program = Program()
        rows = add_period(program, likely, t, usual_routes, price=price, most=most)
        if c is not None and reserved is not None:
            share_reserved(program, c, rows.n, reserved)
        for cut in losses.cuts:
            row = program.row((1,), high=cut.most)
            program.add((rows.n, cut.per_machine), into=np.full(len(rows.n), row[0]))
        if whole:
            found = program.solve(
                integer=rows.n, gap=effort.gap, time_limit_s=max(_LEAST_S, left_s), start=start
            )
        else:
            found = program.solve(methods=(("simplex", "on"),))
        bound = max(bound, found.bound)
        if found.cost == np.inf:
            break
        n = np.rint(found.x[rows.n]) if whole else found.x[rows.n]
        x[usual] = found.x[rows.x]
        enough = losses.allow(n, x)
        if whole and enough:
            return Solved(found.cost, bound, n, x)
        whole = whole or enough
    if known is not None:
        return replace(known[t], bound=bound)
    return Solved(np.inf, bound, np.zeros(len(v.options)), np.zeros(len(routes)))


def _each(solve: Callable[[int, float], Solved], count: int, effort: Effort) -> list[Solved]:
    """One period after the other. Most take little; so each may take `_MORE` times its part of what is left."""
    until_s = time.monotonic() + effort.time_limit_s

    def limited(t: int) -> Solved:
        part_s = (until_s - time.monotonic()) * effort.threads / (count - t)
        return solve(t, max(_LEAST_S, _MORE * part_s))

    with ThreadPoolExecutor(max(1, effort.threads)) as pool:  # the solver leaves the interpreter to others
        return list(pool.map(limited, range(count)))
