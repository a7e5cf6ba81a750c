"""Whole machines, one period at a time. Two programs of a period:

given R     reserved machines up to what is committed to, free of charge: together with R's price, a plan
priced      reserved machines at the period's part of a commitment's price: the sum of all periods is a lower bound for
            every plan (Lagrangian relaxation of C4), whatever the parts are, as long as they sum to that price
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stoa.planner.program.joint import Commitments, limits, prices
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


Known = Sequence[Solved] | None


@dataclass(frozen=True, slots=True)
class Effort:
    gap: float
    time_limit_s: float  # for each period
    threads: int


def given(
    v: View, routes: Sequence[Routes], c: Commitments, reserved: Floats, effort: Effort, known: Known = None
) -> list[Solved]:
    """`known`: a plan to better. NoOptimum if some period has no plan with these commitments."""
    most = most_machines(v, c, reserved)

    def solve(t: int) -> Solved:
        return _solve(v, t, routes[t], prices(v, t), most, effort, known, c, reserved)

    return _each(solve, len(routes), effort.threads)


def priced(v: View, routes: Sequence[Routes], c: Commitments, parts: Floats, effort: Effort) -> list[Solved]:
    """`parts` [T, C]: USD. Begun from nothing: a plan for other prices leads the search astray."""
    mine = np.flatnonzero(c.of_option >= 0)

    def solve(t: int) -> Solved:
        price = prices(v, t)
        price[mine] = parts[t, c.of_option[mine]]
        return _solve(v, t, routes[t], price, limits(v), effort)

    return _each(solve, len(routes), effort.threads)


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
    price: Floats,
    most: Floats,
    effort: Effort,
    known: Known = None,
    c: Commitments | None = None,
    reserved: Floats | None = None,
) -> Solved:
    program = Program()
    rows = add_period(program, v, t, routes, price=price, most=most)
    if c is not None and reserved is not None:
        share_reserved(program, c, rows.n, reserved)
    start = None if known is None else np.concatenate([known[t].n, known[t].x])
    found = program.solve(integer=rows.n, gap=effort.gap, time_limit_s=effort.time_limit_s, start=start)
    if found.cost == np.inf:
        return Solved(np.inf, found.bound, np.zeros(len(rows.n)), np.zeros(len(rows.x)))
    return Solved(found.cost, found.bound, np.rint(found.x[rows.n]), found.x[rows.x])


def _each(solve: Callable[[int], Solved], count: int, threads: int) -> list[Solved]:
    with ThreadPoolExecutor(max(1, threads)) as pool:  # the solver leaves the interpreter to others
        return list(pool.map(solve, range(count)))
