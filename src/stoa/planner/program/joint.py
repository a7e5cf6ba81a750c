"""All periods in one program, and what ties them together.

R[c]        machines committed to for the whole horizon, whole

C4  sum of n[t,m] over a commitment's models <= R[c]
C8  |N[t,o] - N[t-1,o]| <= ramp         machines that come or go at once, of each offer that is rented by the hour
C9  cost <= budget
C10 power that machines draw while they are there, times its carbon, <= carbon
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.problem import Offer
from stoa.planner.program.period import Routes, Rows, add_period
from stoa.planner.program.view import View
from stoa.programs import Floats, Places, Program


@dataclass(frozen=True, slots=True)
class Commitments:
    """Reserved machines: each offer of them, options of each [M] by number, -1 where an option is not of a commitment."""

    offers: tuple[Offer, ...]
    of_option: Places
    hourly: Floats
    least: Floats
    most: Floats


def commitments(v: View) -> Commitments:
    offers = tuple(o for o in v.problem.offers if o.purchase == "reserved" and o.limit != 0)
    number = {(o.place, o.machine): c for c, o in enumerate(offers)}
    of_option = [
        number.get((o.place, o.machine), -1) if o.purchase == "reserved" else -1 for o, _ in v.options
    ]
    least = [float(v.problem.committed.get((o.place, o.machine), 0)) for o in offers]
    most = [np.inf if o.limit is None else float(o.limit) for o in offers]
    return Commitments(
        offers,
        np.array(of_option, np.int64),
        np.array([o.hourly_usd for o in offers]),
        np.array(least),
        np.array(most),
    )


@dataclass(frozen=True, slots=True)
class Joint:
    program: Program
    rows: tuple[Rows, ...]  # by period
    reserved: Places  # [C]
    link: Places  # [T, C] rows of C4
    budget: int  # row of C9, -1 without
    carbon: int
    ramp: Places  # rows of C8


def prices(v: View, t: int) -> Floats:
    """[M] USD of a machine in a period; of reserved ones nothing, since their commitment is paid."""
    hourly = [0.0 if o.purchase == "reserved" else o.hourly_usd * o.availability for o, _ in v.options]
    return np.array(hourly) * float(v.hours[t])


def limits(v: View) -> Floats:
    return np.array([np.inf if o.limit is None else float(o.limit) for o, _ in v.options])


def joint(v: View, routes: Sequence[Routes], c: Commitments) -> Joint:
    """`routes` by period."""
    program = Program()
    most = limits(v)
    rows = tuple(
        add_period(program, v, t, routes[t], price=prices(v, t), most=most) for t in range(len(routes))
    )
    reserved = program.variables(
        (len(c.offers),), cost=c.hourly * v.problem.horizon_h, low=c.least, high=c.most
    )
    link = program.row((len(rows), len(c.offers)), high=0.0)
    mine = np.flatnonzero(c.of_option >= 0)
    for t, period in enumerate(rows):
        program.add((period.n[mine], 1.0), into=link[t, c.of_option[mine]])
    if len(c.offers):
        program.add((np.broadcast_to(reserved, link.shape), -1.0), into=link)
    ramp = _ramp(program, v, rows)
    return Joint(program, rows, reserved, link, _budget(program, v), _carbon(program, v, rows), ramp)


def _ramp(program: Program, v: View, rows: Sequence[Rows]) -> Places:
    """C8; the last period comes before the first."""
    ramp = v.problem.rules.ramp
    found: list[Places] = []
    if ramp is None or len(rows) < 2:
        return np.array(found, np.int64)
    for offer in v.problem.offers:
        mine = [m for m, (o, _) in enumerate(v.options) if o is offer and o.purchase in ("on_demand", "spot")]
        for t in range(len(rows) if mine else 0):
            row = program.row((1,), low=-float(ramp), high=float(ramp))
            program.add((rows[t].n[mine], 1.0), into=np.full(len(mine), row[0]))
            program.add((rows[t - 1].n[mine], -1.0), into=np.full(len(mine), row[0]))
            found.append(row)
    return np.concatenate(found) if found else np.array([], np.int64)


def _budget(program: Program, v: View) -> int:
    """C9."""
    if v.problem.rules.budget_usd is None:
        return -1
    row = program.row((1,), high=v.problem.rules.budget_usd)
    every = np.arange(program.columns)
    program.add((every, program.costs()), into=np.full(len(every), row[0]))
    return int(row[0])


def _carbon(program: Program, v: View, rows: Sequence[Rows]) -> int:
    """C10; machines or places of which nothing is known count nothing."""
    if v.problem.rules.carbon_kg is None:
        return -1
    row = program.row((1,), high=v.problem.rules.carbon_kg)
    machines = {m.name: m.power_kw or 0.0 for m in v.problem.machines}
    places = {p.name: p.carbon_g_per_kwh or 0.0 for p in v.problem.places}
    kg = np.array([o.availability * machines[o.machine] * places[o.place] / 1000 for o, _ in v.options])
    for t, period in enumerate(rows):
        program.add((period.n, kg * v.hours[t]), into=np.full(len(kg), row[0]))
    return int(row[0])
