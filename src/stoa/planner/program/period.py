"""The variables and rows of one period. The labels of rows are those of docs/planner.md.

n[m]        machines of option m, whole
x[w,k,i]    share of bucket k's requests that target i (a pool or an API) gets in world w

C1  sum_i x[w,k,i] = 1                                                       everybody is served
C2  sum_k rate[w,k] load[k,j] x[w,k,j] <= strain[w] sum_m there[w,m] n[m]    within what machines can do
C3  sum of n over an offer's models <= limit                                 machines that there are
C4  sum of n over a commitment's models <= R                                 reserved ones are committed to
C5  sum_k adapters[k] x[w,k,j] <= room[j] sum_m there[w,m] n[m]              adapters stay in memory
C6  C1, C2, C5 and C7 for each loss w                                        what is lost is missed by nobody
C7  sum_k rate[w,k] x[w,k,a] <= requests of API a a second; tokens likewise  APIs have limits
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stoa.planner.program.view import HOUR_S, View
from stoa.programs import Flags, Floats, Places, Program


@dataclass(frozen=True, slots=True)
class Routes:
    """The shares that there are variables for: world, bucket, target of each. What is not there is 0."""

    world: Places
    bucket: Places
    target: Places

    def __len__(self) -> int:
        return len(self.world)

    def pick(self, keep: Flags) -> Routes:
        return Routes(self.world[keep], self.bucket[keep], self.target[keep])


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers of one period's variables and rows. `serve` [W, K] and `work` [W, J] are those of C1 and C2, `apart` [W, J]
    those of C5, zeros if there are none."""

    n: Places  # [M]
    x: Places  # [routes]
    routes: Routes
    serve: Places
    work: Places
    apart: Places
    limit: dict[int, int]  # row by offer
    calls: dict[tuple[int, str], Places]  # [W] rows of C7 by API and "requests" or "tokens"


def all_routes(v: View, t: int) -> Routes:
    """Every share that may be above 0."""
    worlds, buckets, targets = [], [], []
    places = np.array(v.place_of)
    for w, world in enumerate(v.worlds):
        gone = np.isin(places, list(world.gone))
        may = np.isfinite(v.usd) & ~gone & (world.rates[:, t] > 0)[:, None]
        k, i = np.nonzero(may)
        worlds.append(np.full(len(k), w))
        buckets.append(k)
        targets.append(i)
    return Routes(*(np.concatenate(each).astype(np.int64) for each in (worlds, buckets, targets)))


def add_period(program: Program, v: View, t: int, routes: Routes, *, price: Floats, most: Floats) -> Rows:
    """`price` [M]: USD of a machine for all hours of the period; `most` [M]: machines at most. C4 is the caller's."""
    n = program.variables((len(v.options),), cost=price, high=most)
    pools = len(v.pools)
    rates = np.stack([w.rates[:, t] for w in v.worlds])
    paid = np.stack([w.paid[:, t] for w in v.worlds])
    world, bucket, target = routes.world, routes.bucket, routes.target
    requests = paid[world, bucket] * HOUR_S * v.hours[t]
    x = program.variables((len(routes),), cost=requests * v.usd[bucket, target], high=1.0)
    serve = program.row((len(v.worlds), len(v.problem.buckets)), low=_needed(rates), high=_needed(rates))
    program.add((x, 1.0), into=serve[world, bucket])
    own = target < pools
    w, k, j = world[own], bucket[own], target[own]
    work = program.row((len(v.worlds), pools), high=0.0)
    program.add((x[own], rates[w, k] * v.load[k, j]), into=work[w, j])
    apart = _adapters(program, v, w, k, j, x[own])
    for number, each in enumerate(v.worlds):
        there = np.array([o.availability for o, _ in v.options]) * ~each.lost
        program.add((n, -each.strain * there), into=work[number, v.pool_of])
        if apart.any():
            room = np.array([v.fits[p].adapters_gib for _, p in v.options])
            bounded = np.isfinite(room)
            program.add((n[bounded], -(room * there)[bounded]), into=apart[number, v.pool_of[bounded]])
    calls = _api_limits(program, v, rates, routes, x)
    return Rows(n, x, routes, serve, work, apart, _limits(program, v, n), calls)


def _needed(rates: Floats) -> Floats:
    return (rates > 0).astype(np.float64)


def _adapters(program: Program, v: View, w: Places, k: Places, j: Places, x: Places) -> Places:
    """C5, where some bucket has adapters: rows [W, J], else zeros."""
    gib = np.array([b.adapters_gib for b in v.problem.buckets])
    bounded = np.isfinite([f.adapters_gib for f in v.fits])
    if not gib.any() or not bounded.any():
        return np.zeros((len(v.worlds), len(v.pools)), np.int64)
    rows = program.row((len(v.worlds), len(v.pools)), high=0.0)
    some = (gib[k] > 0) & bounded[j]
    program.add((x[some], gib[k][some]), into=rows[w, j][some])
    return rows


def _limits(program: Program, v: View, n: Places) -> dict[int, int]:
    """C3, for offers with a limit that several models share, or one."""
    rows: dict[int, int] = {}
    for number, offer in enumerate(v.problem.offers):
        mine = [m for m, (o, _) in enumerate(v.options) if o is offer]
        if offer.limit is not None and mine:
            rows[number] = int(program.row((1,), high=float(offer.limit))[0])
            program.add((n[mine], 1.0), into=np.full(len(mine), rows[number]))
    return rows


def _api_limits(
    program: Program, v: View, rates: Floats, routes: Routes, x: Places
) -> dict[tuple[int, str], Places]:
    """C7, in every world."""
    calls: dict[tuple[int, str], Places] = {}
    tokens = np.array([b.prompt_tokens + b.output_tokens for b in v.problem.buckets])
    for a, api in enumerate(v.problem.apis):
        mine = routes.target == len(v.pools) + a
        if not mine.any():
            continue
        w, k = routes.world[mine], routes.bucket[mine]
        limits = (
            ("requests", api.requests_per_s, np.ones_like(tokens)),
            ("tokens", api.tokens_per_s, tokens),
        )
        for what, most, weight in limits:
            if np.isfinite(most):
                calls[a, what] = program.row((len(v.worlds),), high=most)
                program.add((x[mine], rates[w, k] * weight[k]), into=calls[a, what][w])
    return calls
