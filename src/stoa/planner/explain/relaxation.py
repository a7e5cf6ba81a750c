"""The linear relaxation of a problem, for questions of the kind "what if": soon solved, and its answers are estimates.

In it machines may be parts of machines, so it costs somewhat less than any plan. Differences between two relaxations are
what explanations call savings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from stoa.planner.problem import Problem
from stoa.planner.program.joint import commitments
from stoa.planner.program.period import all_routes
from stoa.planner.program.relaxed import Relaxed, relax
from stoa.planner.program.view import View, view

TIME_LIMIT_S = 60.0
A = TypeVar("A")
B = TypeVar("B")


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


def at_once(do: Callable[[A], B], these: Sequence[A]) -> list[B]:
    """Results in order; the solver leaves the interpreter to others, so threads help."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(do, these))
