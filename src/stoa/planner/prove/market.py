"""The machines of a pool as the simulator's zones: one for each way of paying; and which spot machines are there when."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stoa.planner.files.replay import Replay
from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import Offer, Problem
from stoa.programs import Floats, Places
from stoa.simulator import SpotTrace, Zone

_TICK_S = 60.0
_AWAY_S = 1800.0  # a spot machine that is gone comes back after half an hour, on average


@dataclass(frozen=True, slots=True)
class Market:
    """Of one pool. `counts` by zone: the plan's machines in each period. `sure` by zone of spot machines: the share of them
    that the plan counts on."""

    zones: tuple[Zone, ...]
    counts: Mapping[str, Places]
    sure: Mapping[str, float]


def market_of(
    plan: Plan,
    problem: Problem,
    pool: Pool,
    *,
    length_s: float,
    startup_s: float,
    spot: Mapping[str, SpotTrace],
    seed: int,
) -> Market:
    """Zones, and by their names the machines of each period. `spot`: what could be had at a place; elsewhere machines come
    and go by chance, and are there for the offer's availability."""
    offers = {(o.place, o.machine, o.purchase): o for o in problem.offers}
    zones, counts = [], {}
    for rented in (r for r in plan.rented if r.pool == pool):
        purchase, machines = rented.purchase, np.array(rented.counts, np.int64)
        offer = offers[pool.place, pool.machine, purchase]
        name = f"{pool.place} {purchase}"
        counts[name] = machines
        if purchase == "spot":
            trace = spot.get(pool.place) or _by_chance(offer, int(machines.max()), length_s, seed)
            zones.append(Zone(name, None, offer.hourly_usd, trace, startup_s))
        else:
            hourly = 0.0 if purchase == "reserved" else offer.hourly_usd
            zones.append(Zone(name, hourly, None, None, startup_s, int(machines.max())))
    return Market(
        tuple(zones),
        counts,
        {z.name: offers[pool.place, pool.machine, "spot"].availability for z in zones if z.spot},
    )


def spot_there(markets: Mapping[Pool, Market], replay: Replay, startup_s: float) -> dict[str, Floats]:
    """By place, for each request of the replay: which share of the spot machines that the plan counts on is ready, in the
    pool with the least. Machines that come back are ready a startup time later."""
    ticks = np.arange(0.0, replay.length_s + _TICK_S, _TICK_S)
    at = (replay.requests.arrival_s // _TICK_S).astype(np.int64)
    period, back = replay.period_at(ticks), min(len(ticks), 1 + math.ceil(startup_s / _TICK_S))
    found: dict[str, Floats] = {}
    for pool, market in markets.items():
        for zone in market.zones:
            if (trace := zone.spot) is None:
                continue
            could = np.array([trace.capacity(t) for t in ticks], np.float64)
            ready = np.min(
                [np.concatenate([could[:1].repeat(n), could[: len(could) - n]]) for n in range(back)], axis=0
            )
            counted_on = market.counts[zone.name][period] * market.sure[zone.name]
            share = np.minimum(
                1.0, np.divide(ready, counted_on, out=np.ones_like(ready), where=counted_on > 0)
            )
            found[pool.place] = np.minimum(found.get(pool.place, 1.0), share[at])
    return found


def _by_chance(offer: Offer, most: int, length_s: float, seed: int) -> SpotTrace | None:
    """Each of `most` machines is there or not, independently, in stretches of random length."""
    if offer.availability >= 1:
        return None
    rng = np.random.default_rng([seed, zlib.crc32(offer.name.encode())])
    ticks = int(length_s // _TICK_S) + 2
    comes = _TICK_S / _AWAY_S
    goes = min(1.0, comes * (1 - offer.availability) / offer.availability)
    there = rng.random(most) < offer.availability
    data = []
    for _ in range(ticks):
        data.append(int(there.sum()))
        there = np.where(there, rng.random(most) >= goes, rng.random(most) < comes)
    return SpotTrace(_TICK_S, np.array(data, np.int64))
