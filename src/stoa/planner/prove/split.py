"""Which pool or API each request of a trace goes to, by the shares of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.files.replay import Replay
from stoa.planner.plan import USUAL, Plan, Pool
from stoa.planner.problem import Problem, Purchase
from stoa.planner.program.view import view
from stoa.programs import Floats, Places

_GOLDEN = (
    5**0.5 - 1
) / 2  # its multiples are spread evenly: each short run of requests is parted by the shares


@dataclass(frozen=True, slots=True)
class Split:
    """`target` of each request: number of `targets`."""

    targets: tuple[Pool | str, ...]
    target: Places


def split(plan: Plan, problem: Problem, replay: Replay) -> Split:
    """By the routes of the usual world, or of the likeliest scenario."""
    likeliest = max(problem.scenarios, key=lambda s: s.probability).name if problem.scenarios else USUAL
    routes = [r for r in plan.routes if r.world == likeliest]
    targets = tuple(dict.fromkeys(r.target for r in routes))
    number = {target: i for i, target in enumerate(targets)}
    shares = np.zeros((len(problem.buckets), len(problem.periods), len(targets)))
    for r in routes:
        shares[r.bucket, :, number[r.target]] = r.shares
    steps = np.cumsum(_filled(shares, problem, targets), axis=2)
    requests = replay.requests
    bucket = np.asarray(requests.project, np.int64)
    period = replay.period_at(requests.arrival_s)
    target = np.zeros(len(requests), np.int64)
    for k in np.unique(bucket):
        mine = np.flatnonzero(bucket == k)
        drawn = (np.arange(1, len(mine) + 1) * _GOLDEN) % 1.0
        target[mine] = np.minimum((drawn[:, None] >= steps[k, period[mine]]).sum(axis=1), len(targets) - 1)
    return Split(targets, target)


def _filled(shares: Floats, problem: Problem, targets: Sequence[Pool | str]) -> Floats:
    """[K, T, targets]. Where no demand of a bucket was foreseen, its requests go where others of the period go, as far as
    they may; where nobody was foreseen, wherever they may. Shares of each bucket and period sum to 1."""
    may = _may(problem, targets)
    rates = np.array([b.rates for b in problem.buckets])
    others = np.einsum("kt,kti->ti", rates, shares)[None] * may[:, None, :]
    total = shares.sum(axis=2, keepdims=True)
    filled = np.where(
        total > 0.5, shares, np.where(others.sum(axis=2, keepdims=True) > 0, others, may[:, None, :])
    )
    parted: Floats = filled / np.maximum(filled.sum(axis=2, keepdims=True), 1e-12)
    return parted


def _may(problem: Problem, targets: Sequence[Pool | str]) -> Floats:
    """[K, targets] 1 where a bucket's requests may be served."""
    v = view(problem)
    every: list[Pool | str] = [*v.pools, *(a.name for a in problem.apis)]
    columns = [every.index(t) for t in targets]
    return np.isfinite(v.usd[:, columns]).astype(np.float64)


def counts_of(plan: Plan, pool: Pool) -> Sequence[tuple[Purchase, Places]]:
    """Machines of a pool by period, for each way of paying."""
    return [(r.purchase, np.array(r.counts, np.int64)) for r in plan.rented if r.pool == pool]
