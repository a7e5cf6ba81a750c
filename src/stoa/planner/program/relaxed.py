"""The linear relaxation of the whole program: a first lower bound, how much to reserve, and what machines are worth when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.program.joint import Commitments, Joint, joint
from stoa.planner.program.period import Routes
from stoa.planner.program.view import View
from stoa.programs import Floats

# few rows, and prices at a corner: simplex is faster here than interior point with crossover
_METHODS = (("simplex", "on"), ("ipm", "on"))


@dataclass(frozen=True, slots=True)
class Relaxed:
    """`reserved` [C]: commitments, not whole. `worth` [T, C]: the part of a commitment's price that a period has to earn.
    Variables and duals are those of `joint`'s program."""

    bound_usd: float
    reserved: Floats
    worth: Floats
    joint: Joint
    row_dual: Floats
    x: Floats
    reduced: Floats


def relax(v: View, routes: Sequence[Routes], c: Commitments, time_limit_s: float) -> Relaxed:
    """NoOptimum if there is no plan at all."""
    j = joint(v, routes, c)
    found = j.program.solve(methods=_METHODS, time_limit_s=time_limit_s)
    worth = _worth(v, c, j, found.row_dual)
    return Relaxed(found.cost, found.x[j.reserved], worth, j, found.row_dual, found.x, found.reduced)


def _worth(v: View, c: Commitments, j: Joint, dual: Floats) -> Floats:
    """What a machine saves in each period; the relaxation leaves it open which periods pay the rest of its price. Spread
    evenly over the hours, it gives the sharpest bounds from whole machines."""
    worth = np.zeros((len(j.rows), len(c.offers)))
    mine = np.flatnonzero(c.of_option >= 0)
    if not len(mine):
        return worth
    pools, which = v.pool_of[mine], c.of_option[mine]
    for t, rows in enumerate(j.rows):
        gains = np.zeros(len(mine))
        for w, world in enumerate(v.worlds):
            there = ~world.lost[mine] * world.strain * np.array([v.options[m][0].availability for m in mine])
            gains += -dual[rows.work[w, pools]] * there
            if rows.apart.any():
                room = np.array([v.fits[p].adapters_gib for p in pools])
                gains += np.where(np.isfinite(room), -dual[rows.apart[w, pools]] * room * there, 0.0)
        np.maximum.at(worth[t], which, np.maximum(gains, 0.0))
    price = c.hourly * v.problem.horizon_h
    spent = worth.sum(axis=0)
    over = spent > price
    worth[:, over] *= price[over] / spent[over]
    left: Floats = np.maximum(0.0, price - worth.sum(axis=0))
    return np.asarray(worth + np.outer(v.hours / v.hours.sum(), left), np.float64)
