"""Losses without their routes: cuts that say which machines would not do (Benders).

What a loss costs is nothing, so only one thing of it matters to a period's program: are these machines enough? A linear
program answers, whose variables are the loss's routes and u[k], the share of a bucket that cannot be served:

    minimize sum_k u[k]   subject to C1 with u, C2, C5 and C7 of the loss, machines fixed at n

Above 0, its reduced costs r of the machines say what one more of each would help, and since it is convex in n,

    value + r (n' - n) <= 0

holds for all machines n' that are enough, and not for n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stoa.planner.program.period import Routes, add_period
from stoa.planner.program.view import View
from stoa.programs import Flags, Floats, Program

_ENOUGH = 1e-7  # of a bucket's requests may be left over, by rounding


@dataclass(frozen=True, slots=True)
class Cut:
    """per_machine [M] times machines is at most `most`."""

    per_machine: Floats
    most: float


class Loss:
    """One loss in one period. `here`: which of all routes are its own."""

    def __init__(self, v: View, t: int, routes: Routes, world: int) -> None:
        self.here: Flags = routes.world == world
        mine = routes.pick(self.here)
        own = Routes(np.zeros(len(mine), np.int64), mine.bucket, mine.target)
        options, program = len(v.options), Program()
        alone = replace(v, worlds=(v.worlds[world],))
        free = np.full(options, np.inf)
        self._rows = add_period(program, alone, t, own, price=np.zeros(options), most=free)
        left = program.variables((len(v.problem.buckets),), cost=1.0)
        program.add((left, 1.0), into=self._rows.serve[0])
        self._again = program.again()

    def cut(self, n: Floats) -> tuple[Cut | None, Floats]:
        """None if these machines are enough; and the loss's routes."""
        for variable, count in zip(self._rows.n.tolist(), n.tolist(), strict=True):
            self._again.set_bounds(variable, count, count)
        found = self._again.solve()
        assert found is not None  # whoever cannot be served is left over
        x = found.x[self._rows.x]
        if found.cost <= _ENOUGH:
            return None, x
        per_machine = found.reduced[self._rows.n]
        return Cut(per_machine, float(per_machine @ n) - found.cost), x


class Losses:
    """All of one period, and the cuts that were found: they hold whatever machines cost and however many are reserved."""

    def __init__(self, v: View, t: int, routes: Routes) -> None:
        after = range(_likely(v), len(v.worlds))
        self._each = [Loss(v, t, routes, w) for w in after if v.worlds[w].rates[:, t].any()]
        self.cuts: list[Cut] = []

    def __bool__(self) -> bool:
        return bool(self._each)

    def allow(self, n: Floats, x: Floats) -> bool:
        """Whether no loss finds the machines too few; their routes go into `x` [routes]. If some does there are new cuts."""
        known = len(self.cuts)
        for loss in self._each:
            cut, x[loss.here] = loss.cut(n)
            if cut is not None:
                self.cuts.append(cut)
        return len(self.cuts) == known


def without_losses(v: View, routes: Routes) -> tuple[View, Routes, Flags]:
    """The view and the routes of the worlds that are likely, and which of all routes these are."""
    usual: Flags = routes.world < _likely(v)
    return replace(v, worlds=v.worlds[: _likely(v)]), routes.pick(usual), usual


def _likely(v: View) -> int:
    return max(1, len(v.problem.scenarios))
