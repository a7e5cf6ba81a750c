"""The machines of a pool as the simulator's zones: one for each way of paying."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import Offer, Problem
from stoa.planner.prove.split import counts_of
from stoa.programs import Places
from stoa.simulator import SpotTrace, Zone

_TICK_S = 60.0
_AWAY_S = 1800.0  # a spot machine that is gone comes back after half an hour, on average


def zones_of(
    plan: Plan,
    problem: Problem,
    pool: Pool,
    *,
    length_s: float,
    startup_s: float,
    spot: Mapping[str, SpotTrace],
    seed: int,
) -> tuple[list[Zone], dict[str, Places]]:
    """Zones, and by their names the machines of each period. `spot`: what could be had at a place; elsewhere machines come
    and go by chance, and are there for the offer's availability."""
    offers = {(o.place, o.machine, o.purchase): o for o in problem.offers}
    zones, counts = [], {}
    for purchase, machines in counts_of(plan, pool):
        offer = offers[pool.place, pool.machine, purchase]
        name = f"{pool.place} {purchase}"
        counts[name] = machines
        if purchase == "spot":
            trace = spot.get(pool.place) or _by_chance(offer, int(machines.max()), length_s, seed)
            zones.append(Zone(name, None, offer.hourly_usd, trace, startup_s))
        else:
            hourly = 0.0 if purchase == "reserved" else offer.hourly_usd
            zones.append(Zone(name, hourly, None, None, startup_s, int(machines.max())))
    return zones, counts


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
