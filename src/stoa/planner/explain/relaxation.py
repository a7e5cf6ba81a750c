"""What a problem would cost, for questions of the kind "what if".

The linear relaxation, in which machines may be parts of machines, is soon solved and costs somewhat less than any plan; with
many machines differences between two relaxations are good estimates. With few they are not: then plans of whole machines,
searched for some seconds each, say more.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from stoa.planner.plan import Plan
from stoa.planner.problem import Problem
from stoa.planner.program import NoPlan, Unservable, solve
from stoa.planner.program.joint import commitments
from stoa.planner.program.period import all_routes
from stoa.planner.program.relaxed import Relaxed, relax
from stoa.planner.program.view import View, view
from stoa.programs import NoOptimum

TIME_LIMIT_S = 60.0
_WHOLE_S, _ALL_S, _WHOLE_GAP = 3.0, 20.0, 0.01  # for each plan of whole machines, and for all of them
_NEAR = 0.95  # share of a plan's cost from which on its relaxation says enough


@dataclass(frozen=True, slots=True)
class Relaxation:
    view: View
    found: Relaxed

    @property
    def usd(self) -> float:
        """Over the horizon."""
        return self.found.bound_usd


def relaxation(problem: Problem, time_limit_s: float = TIME_LIMIT_S) -> Relaxation:
    """NoOptimum if the rules allow no plan at all, Unservable if nothing may serve some demand."""
    v = view(problem)
    routes = [all_routes(v, t) for t in range(len(problem.periods))]
    return Relaxation(v, relax(v, routes, commitments(v), time_limit_s))


def is_rough(problem: Problem, plan: Plan) -> bool:
    """Is the relaxation so far from the plan that whole machines are worth the time? Rules that tie periods together make
    that too long."""
    rules = problem.rules
    tied = rules.ramp is not None or rules.carbon_kg is not None
    return not tied and relaxation(free(problem)).usd < _NEAR * plan.costs.total


def free(problem: Problem) -> Problem:
    """Without a budget, which hides what things cost."""
    return replace(problem, rules=replace(problem.rules, budget_usd=None))


def known_usd(problem: Problem, whole: Plan | None) -> float:
    """What others are compared with: that plan, or the relaxation without a budget."""
    return relaxation(free(problem)).usd if whole is None else whole.costs.total


@dataclass(frozen=True, slots=True)
class Cost:
    """USD over the horizon of the plan that was found. The cheapest costs at least `least_usd`; in the relaxation both are
    its own cost."""

    usd: float
    least_usd: float


def costs(problems: Sequence[Problem], *, whole: bool) -> list[Cost | None]:
    """Of each problem; None without a plan."""
    if whole:
        limit_s = min(_WHOLE_S, _ALL_S / max(1, len(problems)))
        return [_whole(each, limit_s) for each in problems]  # the search has threads of its own
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # the solver leaves the interpreter to others
        return list(pool.map(_relaxed, problems))


def _relaxed(problem: Problem) -> Cost | None:
    try:
        usd = relaxation(problem).usd
    except (NoOptimum, Unservable):
        return None
    return Cost(usd, usd)


def _whole(problem: Problem, limit_s: float) -> Cost | None:
    try:
        plan = solve(problem, gap=_WHOLE_GAP, time_limit_s=limit_s)
    except (NoPlan, Unservable):
        return None
    return Cost(plan.costs.total, plan.bound_usd)
