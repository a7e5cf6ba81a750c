"""The search for a plan, and for a proof of how far from the cheapest it is at most.

1.  The linear relaxation of all periods says how many machines to commit to, and bounds the cost from below.
2.  With the few options alone that it takes, a plan is soon found: it is one of all.
3.  Given the commitments periods are independent: each is a small program of whole machines. Together, a plan.
4.  Priced instead of given, the same programs bound the cost of every plan from below, much more sharply than 1 does.
5.  While the two are apart and there is time: other prices (subgradient steps), and commitments near those; then all
    periods at once, from the best plan, with more and more options.

Small problems are one program first. Ramps and carbon tie periods together otherwise: then it is one program only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stoa.errors import StoaError
from stoa.planner.program.joint import Commitments, commitments
from stoa.planner.program.losses import Losses
from stoa.planner.program.narrow import narrow, nearest, widen
from stoa.planner.program.period import Routes, all_routes
from stoa.planner.program.relaxed import Relaxed, relax
from stoa.planner.program.rounded import dive, rounded
from stoa.planner.program.view import View, narrowed
from stoa.planner.program.whole import Effort, Solved, given, priced
from stoa.programs import Floats, NoOptimum, TimedOut

_SMALL = 10_000  # variables: so few are soonest found all at once
_MIDDLING = 20_000  # ... for which several roundings take little time


class NoPlan(StoaError):
    """No plan keeps all rules, or none was found in time."""

    status = 422
    code = "no_plan"


@dataclass(slots=True)
class Best:
    cost: float
    reserved: Floats
    periods: Sequence[Solved]
    method: str


class Search:
    def __init__(self, v: View, gap: float, time_limit_s: float, threads: int) -> None:
        self.began_s, self.limit_s, self.gap, self.threads = time.monotonic(), time_limit_s, gap, threads
        self.view = v
        self.routes: list[Routes] = [all_routes(v, t) for t in range(len(v.hours))]
        self.commitments: Commitments = commitments(self.view)
        self.relaxed: Relaxed = self._relaxed()
        self.bound = self.relaxed.bound_usd
        self.best: Best | None = None

    @cached_property
    def losses(self) -> list[Losses]:
        """By period. A sketch does without."""
        return [Losses(self.view, t, r) for t, r in enumerate(self.routes)]

    def _relaxed(self) -> Relaxed:
        try:
            return relax(self.view, self.routes, self.commitments, self.limit_s)
        except TimedOut:
            raise NoPlan(
                f"{self.limit_s:g} s were not enough to say whether there is a plan; accepted: a longer time limit"
            ) from None
        except NoOptimum:
            raise NoPlan("no plan keeps all rules") from None

    # -- the course

    def first(self) -> None:
        """A plan, soon. NoPlan if there is none."""
        if not self._tied():
            inner = self._inner(self.limit_s)
            if inner is not None:
                inner._round_all()
                self._take(inner)
            if self.best is None:
                self._round_all()
        budget = self.view.problem.rules.budget_usd
        dear = self.best is None or (budget is not None and self.best.cost > budget)
        if dear:
            self.run()

    def run(self) -> None:
        """The best plan that time allows. NoPlan if there is none."""
        if self._tied():
            self._together(self._left_s())
            if self.best is None:
                raise NoPlan("no plan of whole machines was found in time")
            return
        self._search()
        if self.best is None:  # no whole machines for these commitments, but perhaps for others
            self._together(self._left_s())
        self._check_budget()

    def _search(self) -> None:
        inner = self._inner(0.3 * self.limit_s)
        if inner is not None:
            with suppress(NoPlan):  # these options may be too few for a budget
                inner._begin(1)
            self._take(inner)
        if not self._done():
            self._begin(3)
        if self._is_small():
            self._widen()
        if not self._done():
            self._approach()
        self._widen()

    def _begin(self, rounds: int) -> None:
        """Plans from the relaxation's commitments, in the first of so many rounds of the time that is left."""
        if self.best is None:
            self._round_all()
        if self._is_small():
            self._together(0.6 * self._left_s() / rounds)
        if not self._done():
            reserved = self._ceiled() if self.best is None else self.best.reserved
            self._try(reserved, self._effort(self.gap / 3, rounds))

    def _inner(self, time_limit_s: float) -> Search | None:
        """With the options alone that the relaxation takes: most others are in no good plan. None if they are not much
        fewer, or too few; without losses all options take hardly more time."""
        keep = nearest(self.relaxed, (), 0)
        if 2 * keep.sum() > len(keep) or len(self.view.worlds) == len(self.view.problem.likely):
            return None
        try:
            return Search(narrowed(self.view, keep), self.gap / 2, time_limit_s, self.threads)
        except NoPlan:
            return None

    def _take(self, inner: Search) -> None:
        if (best := inner.best) is not None:
            self._keep(best.reserved, widen(self.view, inner.view, self.routes, best.periods), best.method)

    def _widen(self) -> None:
        """While there is time: all periods at once, from the best plan, with more and more options."""
        more = 8
        while self.best is not None and not self._done():
            keep = nearest(self.relaxed, self.best.periods, more)
            try:
                inner = Search(narrowed(self.view, keep), self.gap / 2, self._left_s(), self.threads)
                if not inner._is_small():
                    return
                periods = narrow(self.view, inner.view, self.routes, self.best.periods)
                inner.best = replace(self.best, periods=periods)
                inner._together(0.5 * self._left_s())
            except NoPlan:  # in the time that is left, or within the budget
                return
            self._take(inner)
            if keep.all():
                self.bound = max(self.bound, inner.bound)
                return
            more *= 2

    def _check_budget(self) -> None:
        """The cheapest plan keeps a budget if any does: it asks for no search of its own."""
        budget = self.view.problem.rules.budget_usd
        if budget is None or self.best is None or self.best.cost <= budget:
            return
        if self.bound <= budget:
            self._together(self._left_s())
        if self.best.cost > budget:
            raise NoPlan(
                f"the budget is {budget:,.2f} USD; no plan was found for less than {self.best.cost:,.2f} USD, and none "
                f"costs less than {self.bound:,.2f} USD"
            )

    def _approach(self) -> None:
        """From both sides: bounds from other prices, plans from other commitments, until nothing new is tried."""
        parts, tried = self.relaxed.worth, {self._ceiled().tobytes()}
        for step in range(1_000):
            if self._done() or not len(self.commitments.offers):
                return
            effort = self._effort(self.gap / 3, 2)
            found = priced(self.view, self.routes, self.losses, self.commitments, parts, effort)
            bound = self._lagrangian(found, parts)
            self.bound = max(self.bound, bound)
            if self._done() or self.best is None or bound == -np.inf:
                return
            wanted = self._wanted(found)
            near = self._near(wanted, step)
            fresh = near.tobytes() not in tried
            if fresh:
                tried.add(near.tobytes())
                self._try(near, self._effort(self.gap / 3, 2))
            moved = _stepped(parts, wanted, (self.best.cost - bound) / (1 + step))
            if not fresh and np.array_equal(moved, parts):
                self._polish()
                return
            parts = moved

    def _polish(self) -> None:
        """The best commitments once more, with all the time that is left."""
        if self.best is not None and not self._done():
            best = self.best
            self._try(best.reserved, self._effort(self.gap / 3, 1), best.periods)

    def _is_small(self) -> bool:
        return self.relaxed.joint.program.columns <= _SMALL

    def _tied(self) -> bool:
        rules = self.view.problem.rules
        return rules.ramp is not None or rules.carbon_kg is not None

    def _done(self) -> bool:
        near = self.best is not None and self.best.cost - self.bound <= self.gap * self.best.cost
        return near or self._left_s() < 0.1 * self.limit_s

    def _left_s(self) -> float:
        return self.limit_s - (time.monotonic() - self.began_s)

    def _effort(self, gap: float, rounds: int) -> Effort:
        """For one of so many rounds over all periods, in the time that is left."""
        return Effort(gap, max(0.5, self._left_s()) / rounds, self.threads)

    # -- plans

    def _ceiled(self) -> Floats:
        c = self.commitments
        return np.clip(np.ceil(self.relaxed.reserved - 1e-6), c.least, c.most)

    def _round_all(self) -> None:
        """With few machines it matters much which of the relaxation's parts of commitments become whole ones."""
        self._round(self._ceiled())
        if self.relaxed.joint.program.columns <= _MIDDLING and len(self.commitments.offers):
            c, j = self.commitments, self.relaxed.joint
            self._round(np.clip(np.floor(self.relaxed.reserved + 1e-6), c.least, c.most))
            found = dive(j.program, j.reserved)
            if found is not None:
                self._round(np.rint(found.x[j.reserved]))

    def _round(self, reserved: Floats) -> None:
        periods = rounded(self.view, self.routes, self.commitments, reserved)
        if periods is not None:
            self._keep(reserved, periods, "by rounding")

    def _try(self, reserved: Floats, effort: Effort, known: Sequence[Solved] | None = None) -> None:
        """The plan with these commitments, if it is the best so far."""
        if known is None and self.best is not None and np.array_equal(reserved, self.best.reserved):
            known = self.best.periods
        try:
            periods = given(self.view, self.routes, self.losses, self.commitments, reserved, effort, known)
        except NoOptimum:
            return
        if not len(self.commitments.offers):
            self.bound = max(self.bound, sum(p.bound for p in periods))
        self._keep(reserved, periods, "by period")

    def _keep(self, reserved: Floats, periods: Sequence[Solved], method: str) -> None:
        committed = float(self.commitments.hourly @ reserved) * self.view.problem.horizon_h
        cost = committed + sum(p.cost for p in periods)
        if self.best is None or cost < self.best.cost:
            self.best = Best(cost, reserved, periods, method)

    def _wanted(self, found: Sequence[Solved]) -> Floats:
        """[T, C] reserved machines that periods would take at their prices."""
        mine = np.flatnonzero(self.commitments.of_option >= 0)
        wanted = np.zeros((len(found), len(self.commitments.offers)))
        for t, period in enumerate(found):
            np.add.at(wanted[t], self.commitments.of_option[mine], period.n[mine])
        return wanted

    def _near(self, wanted: Floats, step: int) -> Floats:
        """Commitments to try: what a middling period wants, by turns somewhat more or less."""
        level = (0.5, 0.35, 0.65)[step % 3]
        c = self.commitments
        return np.clip(np.floor(np.quantile(wanted, level, axis=0) + 1e-9), c.least, c.most)

    # -- bounds

    def _lagrangian(self, found: Sequence[Solved], parts: Floats) -> float:
        """What all periods cost at least at these prices, and what commitments that must be made cost beyond them."""
        c = self.commitments
        beyond = c.hourly * self.view.problem.horizon_h - parts.sum(axis=0)
        return float(sum(p.bound for p in found) + np.maximum(0.0, beyond) @ c.least)

    # -- all periods at once

    def _together(self, time_limit_s: float) -> None:
        """One program. NoPlan if it has no solution at all."""
        j = self.relaxed.joint
        integer = np.concatenate([*(r.n for r in j.rows), j.reserved])
        try:
            found = j.program.solve(
                integer=integer, gap=self.gap, time_limit_s=max(0.5, time_limit_s), start=self._start()
            )
        except NoOptimum as error:
            raise NoPlan(f"no plan of whole machines keeps all rules ({error.message})") from None
        self.bound = max(self.bound, found.bound)
        if found.cost < np.inf:
            usd = j.program.costs() * found.x
            periods = [
                Solved(float(usd[r.n].sum() + usd[r.x].sum()), -np.inf, np.rint(found.x[r.n]), found.x[r.x])
                for r in j.rows
            ]
            self._keep(np.rint(found.x[j.reserved]), periods, "all at once")

    def _start(self) -> Floats | None:
        """The best plan, as values of the program's variables."""
        if self.best is None:
            return None
        j = self.relaxed.joint
        x = np.zeros(j.program.columns)
        x[j.reserved] = self.best.reserved
        for rows, period in zip(j.rows, self.best.periods, strict=True):
            x[rows.n], x[rows.x] = period.n, period.x
        return x


def _stepped(parts: Floats, wanted: Floats, far: float) -> Floats:
    """Dearer where more than the usual is wanted, cheaper where less; each commitment's sum stays what it is. `far`: USD
    between the best plan and the bound that `parts` gave."""
    ascent = wanted - wanted.mean(axis=0)
    norm = float(np.sum(ascent**2))
    if norm <= 0:
        return parts
    moved = np.maximum(0.0, parts + 0.5 * far / norm * ascent)
    sums = moved.sum(axis=0)
    scale: Floats = np.divide(parts.sum(axis=0), sums, out=np.zeros_like(sums), where=sums > 0)
    return np.asarray(moved * scale, np.float64)
