"""Whole machines by rounding, fast: what is needed most nearly whole is taken whole, and the rest solved again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stoa.planner.program.joint import Commitments, prices
from stoa.planner.program.period import Routes, add_period
from stoa.planner.program.view import View
from stoa.planner.program.whole import Solved, most_machines, share_reserved
from stoa.programs import Again, Floats, Places, Program, Solution

_EPS = 1e-6


def rounded(v: View, routes: Sequence[Routes], c: Commitments, reserved: Floats) -> list[Solved] | None:
    """A plan for each period, given what is reserved; None if some period has none."""
    found = []
    for t in range(len(routes)):
        program = Program()
        most = most_machines(v, c, reserved)
        rows = add_period(program, v, t, routes[t], price=prices(v, t), most=most)
        share_reserved(program, c, rows.n, reserved)
        whole = dive(program, rows.n)
        if whole is None:
            return None
        found.append(Solved(whole.cost, -np.inf, np.rint(whole.x[rows.n]), whole.x[rows.x]))
    return found


def dive(program: Program, n: Places) -> Solution | None:
    """Makes these variables whole, one after the other. None if that leads nowhere."""
    again = Again(program)
    low, high = program.bounds(n)
    found = again.solve()
    while found is not None:
        x = found.x
        part = x[n] - np.floor(x[n] + _EPS)
        if not (part > _EPS).any():
            return found
        m = int(np.argmax(part))
        found = None
        for bounds in ((np.ceil(x[n[m]]), high[m]), (low[m], np.floor(x[n[m]]))):
            again.set_bounds(int(n[m]), *bounds)
            found = again.solve()
            if found is not None:
                low[m], high[m] = bounds
                break
    return None
