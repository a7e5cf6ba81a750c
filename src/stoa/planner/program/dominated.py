"""Options that no cheapest plan needs, because another does the same for everybody at no higher price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stoa.planner.plan import Pool
from stoa.planner.problem import Fit, Offer, Problem
from stoa.planner.program.worlds import World
from stoa.programs import Flags, Floats


def needed(
    problem: Problem,
    options: Sequence[tuple[Offer, int]],
    pools: Sequence[Pool],
    fits: Sequence[Fit],
    load: Floats,
    usd: Floats,
    worlds: Sequence[World],
) -> Flags:
    """[M]. An option may go if one without a limit costs no more an hour, is there as often and survives as much, and serves
    every bucket with no more work and cost: machine for machine, it can stand in. Ramps and carbon know machines by
    name, so with these rules all are kept."""
    keep = np.ones(len(options), np.bool_)
    if problem.rules.ramp is not None or problem.rules.carbon_kg is not None or problem.committed:
        return keep
    hourly = np.array([o.hourly_usd * o.availability for o, _ in options])
    there = np.array([o.availability for o, _ in options])
    room = np.array([fits[j].adapters_gib for _, j in options])
    lost = np.array([w.lost for w in worlds])  # [W, M]
    pool = np.array([j for _, j in options])
    by_hour = np.array([o.purchase != "reserved" for o, _ in options])
    for m in np.argsort(hourly, kind="stable"):  # the best stand-ins first
        if options[m][0].limit is not None or not keep[m]:
            continue
        j = pool[m]
        worse = (
            (hourly >= hourly[m]) & (there <= there[m]) & (room <= room[m])
            & (by_hour[m] | ~by_hour)  # what is committed to for the whole time cannot stand in for hours
            & (lost >= lost[:, [m]]).all(axis=0)
            & (load[:, pool] >= load[:, [j]]).all(axis=0) & (usd[:, pool] >= usd[:, [j]]).all(axis=0)
        )  # fmt: skip
        if lost.any():  # a place's API goes with it, and so does its world
            worse &= np.array([pools[i].place == pools[j].place for i in pool])
        worse[m] = False
        keep[worse] = False
    return keep
