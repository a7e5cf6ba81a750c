"""The elastic program: rules may be bent, at a price, and bending costs far more than any plan could save by it.

s[o]   machines more of offer o than its limit              C3  sum of n over an offer's models - s[o] <= limit
s[B]   USD beyond the budget                                C9  cost - s[B] <= budget
s[C]   kg beyond the carbon limit                           C10 likewise
r      machines more that may come or go at once            C8  N[t] - N[t-1] - p + q within the ramp, p <= r, q <= r
s[a]   requests or tokens a second beyond API a's limit     C7  likewise
y[s]   service s is not served after a loss                 C6  sum_i x[w,k,i] + y[s] = 1
z[g,p] group g may be computed at place p too               x <= z

Prices make bends of different kinds comparable. They are what it would cost about to have the more for the horizon: a
machine its price by the hour, a promise what serving those whom it is broken to costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stoa.planner.explain.changes import Change, Kind, rounded_up
from stoa.planner.problem import Offer, Problem
from stoa.planner.program.joint import Joint, commitments, joint
from stoa.planner.program.period import all_routes
from stoa.planner.program.view import HOUR_S, View, view
from stoa.programs import Floats, NoOptimum, Places, Program

_FAR = 1000.0  # a bend that is not needed must save so many times its price
_CARBON_USD_PER_KG = 0.1  # about what a right to emit costs in the EU's trade
_HOURLY_USD = 2.0  # of an owned machine, each of its accelerators, if nobody rents such a one out
_BOUGHT = 1.05
_GAP = 0.01
_FEW = 600  # whole numbers with which a program is soon solved
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class _Bends:
    """Numbers of the variables; what is not bent is not there."""

    machines: Mapping[int, int]  # by offer
    calls: Mapping[tuple[int, str], int]  # by API and "requests" or "tokens"
    survives: Mapping[str, int]  # by service
    places: Mapping[tuple[str, str], int]  # by group and place
    budget: int = -1
    carbon: int = -1
    ramp: int = -1

    def whole(self) -> Places:
        """Those that are whole numbers."""
        mine = [*self.machines.values(), *self.survives.values(), *self.places.values()]
        return np.array([*mine, *([self.ramp] if self.ramp >= 0 else [])], np.int64)


def bends(problem: Problem, kinds: frozenset[str], time_limit_s: float) -> tuple[Change, ...] | None:
    """The least that must change, of kinds "machines", "budget", "carbon", "ramp", "apis", "survival", "places"; None if
    that is not enough, or nothing was found in time. Machines that run are whole only in small programs that are solved
    to the end; otherwise only the changes are, and may be too little."""
    v = view(_lifted(problem, kinds))
    routes = [all_routes(v, t) for t in range(len(problem.periods))]
    j = joint(v, routes, commitments(v))
    made = _bent(problem, v, j, kinds)
    price = j.program.costs() / _FAR
    changes = made.whole()
    every = np.concatenate([*(r.n for r in j.rows), j.reserved, changes])
    for integer in (every, changes) if len(every) <= _FEW else (changes,):
        try:
            found = j.program.solve(
                integer=integer if len(integer) else None, gap=_GAP, time_limit_s=time_limit_s
            )
        except NoOptimum:
            return None
        if found.cost - found.bound <= 2 * _GAP * found.cost:
            return _changes(problem, made, found.x, price)
    return None if found.cost == np.inf else _changes(problem, made, found.x, price)


def _lifted(problem: Problem, kinds: frozenset[str]) -> Problem:
    """Without the limits that get rows of their own here. A carbon limit that never binds keeps all options: which are
    needed depends on the limits."""
    offers, groups, rules = problem.offers, problem.groups, problem.rules
    if "machines" in kinds:
        offers = tuple(replace(o, limit=None) if o.limit else o for o in offers)
    if "places" in kinds:
        everywhere = frozenset(p.name for p in problem.places)
        groups = tuple(replace(g, places=everywhere) for g in groups)
    if rules.carbon_kg is None:
        rules = replace(rules, carbon_kg=np.inf)
    return replace(problem, offers=offers, groups=groups, rules=rules)


# -- variables and rows


def _bent(problem: Problem, v: View, j: Joint, kinds: frozenset[str]) -> _Bends:
    program, worth = j.program, _serving_usd(v)
    budget = carbon = ramp = -1
    if "budget" in kinds and j.budget >= 0:
        budget = _slack(program, 1.0, np.array([j.budget]))
    if "carbon" in kinds and problem.rules.carbon_kg is not None:
        carbon = _slack(program, _CARBON_USD_PER_KG, np.array([j.carbon]))
    if "ramp" in kinds and len(j.ramp):
        ramp = _ramp(program, problem, j.ramp)
    return _Bends(
        _machines(program, problem, v, j) if "machines" in kinds else {},
        _calls(program, v, j) if "apis" in kinds else {},
        _survives(program, v, j, worth) if "survival" in kinds else {},
        _places(program, problem, v, j, worth) if "places" in kinds else {},
        budget,
        carbon,
        ramp,
    )


def _slack(program: Program, usd: float, rows: Places) -> int:
    """A variable that gives way in rows with an upper bound."""
    slack = int(program.variables((1,), cost=_FAR * usd)[0])
    program.add((np.full(len(rows), slack), -1.0), into=rows)
    return slack


def _machines(program: Program, problem: Problem, v: View, j: Joint) -> dict[int, int]:
    made = {}
    commits = [o for o in v.problem.offers if o.purchase == "reserved" and o.limit != 0]
    for number, (limited, offer) in enumerate(zip(problem.offers, v.problem.offers, strict=True)):
        mine = np.array([m for m, (o, _) in enumerate(v.options) if o is offer], np.int64)
        if not limited.limit or not len(mine):
            continue
        high = float(limited.limit)
        if offer.purchase == "reserved":
            rows = program.add((j.reserved[[c for c, o in enumerate(commits) if o is offer]], 1.0), high=high)
        else:
            rows = program.row((len(j.rows),), high=high)
            for row, period in zip(rows, j.rows, strict=True):
                program.add((period.n[mine], 1.0), into=np.full(len(mine), row))
        made[number] = _slack(program, hourly_usd(problem, limited) * problem.horizon_h, rows)
    return made


def hourly_usd(problem: Problem, offer: Offer) -> float:
    """For how big it is to have one more. Owned ones count what they would be rented for, not the power they draw, and a
    little more: of equals, the one that can be given back is the lesser change."""
    if offer.purchase != "owned":
        return offer.hourly_usd * offer.availability
    lasting = ("reserved", "on_demand")
    alike = [o.hourly_usd for o in problem.offers if o.machine == offer.machine and o.purchase in lasting]
    machine = next(m for m in problem.machines if m.name == offer.machine)
    return max(offer.hourly_usd, _BOUGHT * min(alike, default=_HOURLY_USD * machine.accelerators))


def _ramp(program: Program, problem: Problem, rows: Places) -> int:
    """Instead of coming and going, a machine could be kept."""
    hourly = [o.hourly_usd for o in problem.offers if o.purchase in ("on_demand", "spot") and o.limit != 0]
    more = program.variables((1,), cost=_FAR * min(hourly) * problem.horizon_h)
    up, down = program.variables(rows.shape), program.variables(rows.shape)
    program.add((up, -1.0), (down, 1.0), into=rows)
    for each in (up, down):
        program.add((each, 1.0), (np.broadcast_to(more, rows.shape), -1.0), high=0.0)
    return int(more[0])


def _calls(program: Program, v: View, j: Joint) -> dict[tuple[int, str], int]:
    buckets = v.problem.buckets
    weight = np.array([sum(b.rates) for b in buckets]) + _EPS
    prompt = float(np.average([b.prompt_tokens for b in buckets], weights=weight))
    output = float(np.average([b.output_tokens for b in buckets], weights=weight))
    made = {}
    for key in sorted({key for rows in j.rows for key in rows.calls}):
        number, what = key
        usd = v.problem.apis[number].request_usd(prompt, output) / (
            1.0 if what == "requests" else prompt + output
        )
        rows = np.concatenate([r.calls[key] for r in j.rows if key in r.calls])
        made[key] = _slack(program, usd * HOUR_S * v.problem.horizon_h, rows)
    return made


def _survives(program: Program, v: View, j: Joint, worth: Floats) -> dict[str, int]:
    lost = [w for w, world in enumerate(v.worlds) if world.lost.any() or world.gone]
    made = {}
    for service in v.problem.services:
        mine = [k for k, b in enumerate(v.problem.buckets) if b.service == service.name and any(b.rates)]
        if not lost or not mine or not service.survives:
            continue
        broken = program.variables((1,), cost=_FAR * max(_EPS, worth[mine].sum()), high=1.0)
        for t, rows in enumerate(j.rows):
            some = [k for k in mine if v.problem.buckets[k].rates[t] > 0]
            serve = rows.serve[np.ix_(lost, some)].ravel()
            program.add((np.broadcast_to(broken, serve.shape), 1.0), into=serve)
        made[service.name] = int(broken[0])
    return made


def _places(
    program: Program, problem: Problem, v: View, j: Joint, worth: Floats
) -> dict[tuple[str, str], int]:
    place_of, made = np.array(v.place_of), {}
    for group in problem.groups:
        mine = np.array([b.group == group.name for b in problem.buckets])
        for place in sorted({p.name for p in problem.places} - group.places):
            also = program.variables((1,), cost=_FAR * max(_EPS, worth[mine].sum()), high=1.0)
            for rows in j.rows:
                r = rows.routes
                x = rows.x[mine[r.bucket] & (place_of[r.target] == place)]
                program.add((x, 1.0), (np.broadcast_to(also, x.shape), -1.0), high=0.0)
            made[group.name, place] = int(also[0])
    return made


def _serving_usd(v: View) -> Floats:
    """[K] over the horizon, where it is cheapest."""
    hourly = np.full(len(v.pools), np.inf)
    for offer, j in v.options:
        hourly[j] = min(hourly[j], hourly_usd(v.problem, offer))
    each = v.usd.copy()
    own = np.isfinite(v.load)
    each[:, : len(v.pools)][own] += (np.where(own, v.load, 0.0) * hourly / HOUR_S)[own]
    requests = np.array([b.rates for b in v.problem.buckets]) @ v.hours * HOUR_S
    return np.where(
        requests > 0, requests * np.min(each, axis=1, initial=np.inf, where=np.isfinite(each)), 0.0
    )


# -- the result


def _changes(problem: Problem, made: _Bends, x: Floats, price: Floats) -> tuple[Change, ...]:
    rules = problem.rules
    found: list[Change] = []

    def bent(kind: Kind, name: str, s: int, before: float | None) -> None:
        if s < 0 or x[s] <= _EPS or before is None:
            return
        whole = kind in ("machines", "ramp")
        to = before + float(np.ceil(x[s] - 1e-4)) if whole else rounded_up(before + float(x[s]))
        found.append(Change(kind, name, to, before, usd=float(price[s]) * (to - before)))

    for number, s in made.machines.items():
        bent("machines", problem.offers[number].name, s, problem.offers[number].limit)
    bent("budget", "", made.budget, rules.budget_usd)
    bent("carbon", "", made.carbon, rules.carbon_kg)
    bent("ramp", "", made.ramp, rules.ramp)
    for (number, what), s in made.calls.items():
        api = problem.apis[number]
        if what == "requests":
            bent("requests", api.name, s, api.requests_per_s)
        else:
            bent("tokens", api.name, s, api.tokens_per_s)
    for name, s in made.survives.items():
        if x[s] > _EPS:
            found.append(Change("survives", name, usd=float(price[s])))
    for (group, place), s in made.places.items():
        if x[s] > _EPS:
            forbidden = next(g.rules for g in problem.groups if g.name == group)
            found.append(Change("places", group, place=place, usd=float(price[s]), rules=forbidden))
    return tuple(found)
