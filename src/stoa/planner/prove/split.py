"""Which pool or API each request of a trace goes to, by the shares of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.files.replay import Replay
from stoa.planner.losses import Loss
from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import Problem
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


def split(plan: Plan, problem: Problem, replay: Replay, there: Mapping[str, Floats] | None = None) -> Split:
    """By the routes of the usual world, or of the likeliest scenario. `there` by place: the share of its spot machines that
    a plan counts on and that are there, for each request; in proportion to what is missing, requests take the routes that
    the plan has for that loss, if it is to be survived."""
    worlds = {_likeliest(problem): np.ones(len(replay.requests))}
    planned = {r.world for r in plan.routes}
    lost = {Loss(place, spot=True).name: 1 - share for place, share in (there or {}).items()}
    lost = {world: missing for world, missing in lost.items() if world in planned}
    whole = np.maximum(1.0, sum(lost.values(), np.zeros(len(replay.requests))))
    for world, missing in lost.items():
        worlds[world] = missing / whole
        worlds[_likeliest(problem)] -= worlds[world]
    targets = tuple(dict.fromkeys(r.target for r in plan.routes if r.world in worlds))
    shares = _shares(plan, problem, list(worlds), targets)
    chances = np.stack(list(worlds.values()))
    bucket = np.asarray(replay.requests.project, np.int64)
    period = replay.period_at(replay.requests.arrival_s)
    target = np.zeros(len(bucket), np.int64)
    for k in np.unique(bucket):
        mine = np.flatnonzero(bucket == k)
        steps = np.cumsum(np.einsum("wn,wni->ni", chances[:, mine], shares[:, k, period[mine]]), axis=1)
        drawn = (np.arange(1, len(mine) + 1) * _GOLDEN) % 1.0
        target[mine] = np.minimum((drawn[:, None] >= steps).sum(axis=1), len(targets) - 1)
    return Split(targets, target)


def _likeliest(problem: Problem) -> str:
    return max(problem.likely, key=lambda s: s.probability).name


def _shares(plan: Plan, problem: Problem, worlds: Sequence[str], targets: Sequence[Pool | str]) -> Floats:
    """[W, K, T, targets]. The first world is the usual one; others have its shares where they say nothing."""
    number = {target: i for i, target in enumerate(targets)}
    shares = np.zeros((len(worlds), len(problem.buckets), len(problem.periods), len(targets)))
    for r in plan.routes:
        if r.world in worlds:
            shares[worlds.index(r.world), r.bucket, :, number[r.target]] = r.shares
    shares[0] = _filled(shares[0], problem, targets)
    return np.where(shares.sum(axis=3, keepdims=True) > 0.5, shares, shares[:1])


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
