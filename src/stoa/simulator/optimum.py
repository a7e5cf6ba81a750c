"""What a fleet costs at least that knows all requests and all spot machines in advance.

A linear program in bins of D seconds. For each offer o and bin b, r[o,b] is the mean number of ready replicas, u[o,b] how
many have become ready; G[b] is the work (`optimum_work.py`) done by the end of bin b, Y[b] the work due by then that is
late, y[g,b] what is made late of group g in bin b.

    minimize  sum_o price_o (D sum_b r[o,b] + startup_o sum_b u[o,b])
    C1  G[b] - G[b-1] <= D sum_o r[o,b]                  no more is done than ready replicas have time for
    C2  due[b] - Y[b] <= G[b],  overdue[b] <= G[b] <= arrived[b]
    C3  Y[b] = sum of y[g,b'] over g and the `remembered` bins up to b,  y[g,b] <= may_be_late[g,b]
    C4  sum_gb y[g,b] / most[g] <= late_allowed          a late request takes at most `most` out of what is due
    C5  r[o,b] - r[o,b-1] <= u[o,b],  r[o,b] = 0 before startup_o
    C6  r[o,b] + sum_(j = 1 .. startup_o / D) u[o,b+j] <= capacity[o,b]    what starts has its machine already

It is a lower bound for every policy in the simulator, because what any run does satisfies it. Take r as a run's ready
replicas averaged over each bin, and u[o,b] as the number that become ready between t and t + D, averaged over t in bin b-1;
then C5 and C6 hold as averages of what holds at each moment, each launch is counted once, and it was paid for
startup_o before it was ready. G is the work of steps done or under way; C1 holds since rows never weigh more than
their step. What is taken for granted is `Patience`: late requests and stalled streams do not wait for hours.

How loose it is: replicas come in fractions; arrivals within a bin may be served at its mean rate (so bursts shorter than D
cost nothing); every replica works all the time in the fullest steps; which requests are late is chosen freely.
`steady=True` closes most of the second: where replicas become ready at bins' beginnings only (startups are multiples of
the tick, and a bin is a tick), r[o,b] is their number at the beginning, and arrivals are followed in `parts` of a bin.
Whoever is drained within a bin is paid for less than all of it, hence startup_o - D per launch in the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stoa.fleet.policies.facts import Market, Slo
from stoa.fleet.policies.profile import Profile
from stoa.programs import NoOptimum, Places, Program
from stoa.simulator.market import Zone
from stoa.simulator.optimum_work import Curves, Floats, Patience, curves
from stoa.simulator.spot import SpotTrace
from stoa.simulator.traces import Requests


@dataclass(frozen=True, slots=True)
class Supply:
    """An offer and how many replicas it has in each bin; None: any number."""

    zone: str
    market: Market
    hourly: float
    startup_s: float
    capacity: Floats | None = None  # [bins]


@dataclass(frozen=True, slots=True)
class Optimum:
    cost_usd: float
    machine_hours: dict[Market, float]  # startups included
    bin_s: float
    replicas: Floats  # [supplies, bins], ready
    late: float  # requests, at least

    @property
    def hours(self) -> float:
        return sum(self.machine_hours.values())


def lower_bound(
    requests: Requests,
    zones: Sequence[Zone],
    profile: Profile,
    slo: Slo,
    *,
    until_s: float,
    from_s: float = 0.0,
    bin_s: float = 60.0,
    steady: bool = False,
    parts: int = 1,
    patience: Patience | None = None,
) -> Optimum:
    """The least cost of [from_s, until_s); a part of a bin at the end is left out. From second 0 a fleet begins without
    replicas; from later on it may have any at the beginning, and what arrived earlier is no work. NoOptimum: the
    SLO is out of reach."""
    bins = int((until_s - from_s) / bin_s + 1e-9)
    counted = requests.part((requests.arrival_s >= from_s) & (requests.arrival_s < until_s))
    counted = replace(counted, arrival_s=counted.arrival_s - from_s)
    work = curves(counted, profile, slo, bins=bins * parts, bin_s=bin_s / parts, patience=patience)
    if work.late_allowed < 0:
        raise NoOptimum("more requests than may be late have prompts that no replica computes in time")
    offers = supplies(zones, from_s=from_s, bins=bins, bin_s=bin_s, steady=steady)
    return bound(work, offers, parts=parts, steady=steady, cold=from_s <= 0)


def supplies(
    zones: Sequence[Zone], *, bins: int, bin_s: float, from_s: float = 0.0, steady: bool = False
) -> list[Supply]:
    """All spot offers and the on-demand offers that no other beats in price and startup. Capacities are means of the bins,
    or with `steady` their greatest values."""
    offers: list[Supply] = []
    for zone in zones:
        if zone.spot_hourly is not None:
            capacity = (
                None if zone.spot is None else levels(zone.spot, bins, bin_s, from_s=from_s, most=steady)
            )
            offers.append(Supply(zone.name, "spot", zone.spot_hourly, zone.startup_s, capacity))
    firm = [z for z in zones if z.on_demand_hourly is not None]
    for zone in sorted(firm, key=lambda z: (z.on_demand_hourly, z.startup_s)):
        limit = None if zone.on_demand_capacity is None else np.full(bins, float(zone.on_demand_capacity))
        beaten = any(
            o.market == "on_demand" and o.capacity is None and o.startup_s <= zone.startup_s for o in offers
        )
        if not beaten:
            offers.append(Supply(zone.name, "on_demand", zone.on_demand_hourly or 0.0, zone.startup_s, limit))
    return offers


def levels(spot: SpotTrace, bins: int, bin_s: float, *, from_s: float = 0.0, most: bool = False) -> Floats:
    """Mean (or greatest) capacity in each bin."""
    found = np.zeros(bins)
    for b in range(bins):
        at_s, end_s = from_s + b * bin_s, from_s + (b + 1) * bin_s
        while at_s < end_s:
            next_s = min(end_s, spot.next_change_s(at_s))
            level = spot.capacity(at_s)
            found[b] = max(found[b], level) if most else found[b] + level * (next_s - at_s) / bin_s
            at_s = next_s
    return found


def bound(
    work: Curves,
    offers: Sequence[Supply],
    *,
    parts: int = 1,
    steady: bool = False,
    cold: bool = True,
    integer: bool = False,
) -> Optimum:
    """The program's optimum. `cold`: it begins without replicas. `integer`: of whole replicas that change between bins only
    (for tests on small cases)."""
    bins, bin_s = work.bins // parts, work.bin_s * parts
    program = Program()
    ready, started, paid_s = _replicas(program, offers, bins, bin_s, steady, cold)
    late = _service(program, work, ready, parts)
    found = program.solve(integer=np.concatenate([ready.ravel(), started.ravel()]) if integer else None)
    x = found.x
    hours: dict[Market, float] = {}
    for i, s in enumerate(offers):
        seconds = bin_s * x[ready[i]].sum() + paid_s[i] @ x[started[i]]
        hours[s.market] = hours.get(s.market, 0.0) + float(seconds) / 3600.0
    return Optimum(found.cost, hours, bin_s, x[ready], float(np.sum(x[late] / np.maximum(work.most, 1e-30))))


def _replicas(
    program: Program, offers: Sequence[Supply], bins: int, bin_s: float, steady: bool, cold: bool
) -> tuple[Places, Places, Floats]:
    """(r, u, seconds paid before a u) with their cost, C5 and C6."""
    price_s = np.array([[s.hourly / 3600.0] for s in offers])
    startup_s = np.array([[s.startup_s] for s in offers])
    unpaid_s = bin_s if steady else 0.0
    shape = (len(offers), bins)
    most = np.full(shape, np.inf)
    for i, s in enumerate(offers):
        if s.capacity is not None:
            most[i] = s.capacity[:bins]
        most[i, : int(s.startup_s // bin_s) if cold else 0] = 0.0
    ready = program.variables(shape, cost=price_s * bin_s, high=most)
    paid_s = np.broadcast_to(startup_s - unpaid_s, shape).copy()
    if not cold:
        paid_s[np.arange(bins) * bin_s <= startup_s] = 0.0  # launched before, at least in part
    started = program.variables(shape, cost=price_s * paid_s)
    rise = program.add((ready[:, 1:], 1.0), (started[:, 1:], -1.0), high=0.0)
    program.add((ready[:, :-1], -1.0), into=rise)
    if cold:
        program.add((ready[:, :1], 1.0), (started[:, :1], -1.0), high=0.0)
    for i, s in enumerate(offers):
        ahead = int(s.startup_s // bin_s)
        if s.capacity is not None and ahead:
            rows = program.add((ready[i], 1.0), high=s.capacity[:bins])
            for j in range(1, ahead + 1):
                program.add((started[i, j:], 1.0), into=rows[: bins - j])
    return ready, started, paid_s


def _service(program: Program, work: Curves, ready: Places, parts: int) -> Places:
    """C1 to C4; the variables y. Instead of G stands what has arrived and is not done, q = arrived - G, and Y keeps of
    its sum only what is not overdue: both stay small, which the solver likes."""
    n, come = work.bins, np.diff(work.arrived, prepend=0.0)
    waiting = program.variables((n,), high=np.maximum(0.0, work.arrived - work.overdue))
    late = program.variables(work.may_be_late.shape, high=work.may_be_late)
    late_sum = program.variables((n,))
    rate = program.add((waiting, 1.0), low=come)  # C1
    program.add((waiting[:-1], -1.0), into=rate[1:])
    program.add((np.repeat(ready, parts, axis=1), work.bin_s), into=rate[None, :])
    program.add((waiting[1:], 1.0), (waiting[:-1], -1.0), high=come[1:])
    program.add((waiting, 1.0), (late_sum, -1.0), high=np.maximum(0.0, work.arrived - work.due))  # C2
    total = program.add((late_sum, 1.0), low=0.0, high=0.0)  # C3
    program.add((late_sum[:-1], -1.0), into=total[1:])
    program.add((late, -1.0), into=total[None, :])
    if work.remembered < n:
        program.add((late[:, : n - work.remembered], 1.0), into=total[None, work.remembered :])
    some = work.most > 0  # C4
    share = 1.0 / work.most[some]
    if share.size:
        row = program.add((late[some].ravel()[:1], share.ravel()[:1]), high=work.late_allowed)
        program.add((late[some].ravel()[1:], share.ravel()[1:]), into=np.broadcast_to(row, share.size - 1))
    return late
