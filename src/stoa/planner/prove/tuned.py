"""How much more than the mean rate machines must be bought for, found by trying plans on the trace they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from stoa.planner.files.replay import Replay
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem
from stoa.planner.prove.proof import Proof, prove
from stoa.simulator import SpotTrace

_STEP = 1.06
_MOST_TRIES = 16


def tune(
    problem: Problem,
    replay: Replay,
    solve: Callable[[Problem], Plan],
    *,
    spot: Mapping[str, SpotTrace] | None = None,
    startup_s: float = 120.0,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> tuple[Problem, Plan, Proof]:
    """Begins with margins of 1 and raises those of the worst periods until every service keeps its promise on the replay,
    which must be one that plans may learn from. The problem with the margins, the plan, and its proof; the last ones
    tried, if none kept all promises."""
    margin = np.ones(len(problem.periods))
    for _ in range(_MOST_TRIES):
        tried = replace(problem, rules=replace(problem.rules, margin=tuple(margin.tolist())))
        plan = solve(tried)
        proof = prove(plan, tried, replay, spot=spot, startup_s=startup_s, seed=seed)
        log(
            f"margins {margin.min():.2f} to {margin.max():.2f}: {proof.shortfall:.2%} of the requests short of the promise, "
            f"{plan.costs.total * 720 / problem.horizon_h:,.2f} USD per 30 days"
        )
        if proof.shortfall <= 0:
            break
        allowed = 1 - max(s.promised for s in proof.services)
        late = np.array(proof.late)
        margin[late > allowed / 2] *= _STEP
        margin[late > 4 * allowed] *= _STEP
    written = ", ".join(
        f'"{p.name}" = {m:.2f}' for p, m in zip(tried.periods, tried.rules.margin, strict=True)
    )
    log(f"[safety] margin = {{ {written} }}")
    return tried, plan, proof
