"""The planner's obvious rival: each bucket goes where its tokens are cheapest, and counts are rounded up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

from stoa.planner.eligible import api_in_time, in_time
from stoa.planner.plan import Plan, Pool, Rented, Route, cost_of, traffic_usd
from stoa.planner.problem import Bucket, Fit, Offer, Problem, Purchase
from stoa.planner.verify import BrokenPlan, verify

HOUR_S = 3600.0
_FULL = 1e-9
Option = tuple[Offer, Fit]


def greedy(problem: Problem) -> Plan | None:
    """The cheapest of its plans over all sets of purchase options and both orders of buckets: that it reserves where that is
    dear, or gives scarce machines to those who could go elsewhere, is not held against it. None if none keeps the rules."""
    kinds: list[Purchase] = sorted({o.purchase for o in problem.offers})
    found: list[Plan] = []
    for size in range(1, len(kinds) + 1):
        for chosen in combinations(kinds, size):
            plans = [by_tokens(problem, chosen, scarce_first=first) for first in (False, True)]
            found += [plan for plan in plans if plan is not None]
    return min(found, key=lambda plan: plan.costs.total, default=None)


def by_tokens(problem: Problem, purchases: Iterable[Purchase], *, scarce_first: bool) -> Plan | None:
    """Buckets in order of their tokens a second, the largest first, or with `scarce_first` after those that may go to fewer
    places. What an option has no more room for goes to the next cheapest. Reserved machines are committed to for the
    period that takes the most."""
    kinds = set(purchases)
    options = [
        (o, f) for o in problem.offers if o.purchase in kinds for f in problem.fits if f.machine == o.machine
    ]
    counts: dict[tuple[Pool, Purchase], list[int]] = defaultdict(lambda: [0] * len(problem.periods))
    shares: dict[tuple[int, Pool | str], list[float]] = defaultdict(lambda: [0.0] * len(problem.periods))
    for t in range(len(problem.periods)):
        period = _Period(problem, options, t)
        if not period.fill(scarce_first):
            return None
        for (pool, purchase), count in period.machines():
            counts[pool, purchase][t] = count
        for key, share in period.shares.items():
            shares[key][t] = share
    return _plan(problem, counts, shares)


class _Period:
    def __init__(self, problem: Problem, options: list[Option], t: int) -> None:
        self.problem, self.options, self.t = problem, options, t
        self.work: dict[int, float] = defaultdict(float)  # by option: machines that are there all the time
        self.adapters: dict[int, float] = defaultdict(float)
        self.called: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self.shares: dict[tuple[int, Pool | str], float] = defaultdict(float)
        worst = max((s.factors[t] for s in problem.scenarios), default=1.0)
        self.factor = worst * problem.margin(t)

    def fill(self, scarce_first: bool) -> bool:
        order = [k for k, b in enumerate(self.problem.buckets) if b.rates[self.t] > 0]
        order.sort(key=lambda k: -self._tokens(self.problem.buckets[k]))
        if scarce_first:
            order.sort(key=lambda k: len(self._choices(k)))
        return all(self._place(k) for k in order)

    def _tokens(self, b: Bucket) -> float:
        return b.rates[self.t] * (b.prompt_tokens + b.output_tokens)

    def _place(self, k: int) -> bool:
        left = 1.0
        for _, where in sorted(self._choices(k)):
            share = min(left, self._room(k, where))
            if share > 0:
                self._take(k, where, share)
                left -= share
            if left <= _FULL:
                return True
        return False

    def _choices(self, k: int) -> list[tuple[float, int]]:
        """USD a request, number of the option, or that of an API after them."""
        p, b = self.problem, self.problem.buckets[k]
        service = next(s for s in p.services if s.name == b.service)
        places = next(g for g in p.groups if g.name == b.group).places
        found = []
        for m, (offer, fit) in enumerate(self.options):
            if offer.place in places and in_time(p, b, service, fit, offer.place, k):
                work_usd = offer.hourly_usd * fit.load_s[k] / HOUR_S
                found.append((work_usd + traffic_usd(p, k, offer.place), m))
        for a, api in enumerate(p.apis):
            if api.place in places and api_in_time(p, b, service, api):
                usd = api.request_usd(b.prompt_tokens, b.output_tokens) + traffic_usd(p, k, api.place)
                found.append((usd, len(self.options) + a))
        return found

    def _room(self, k: int, where: int) -> float:
        """Share of the bucket that still fits."""
        b = self.problem.buckets[k]
        rate = b.rates[self.t] * self.factor
        if where >= len(self.options):
            api = self.problem.apis[where - len(self.options)]
            requests, tokens = self.called[api.name]
            most = min(
                api.requests_per_s - requests,
                (api.tokens_per_s - tokens) / (b.prompt_tokens + b.output_tokens),
            )
            return max(0.0, most / rate)
        offer, fit = self.options[where]
        if offer.limit is None:
            return 1.0
        others = sum(self._count(m) for m, (o, _) in enumerate(self.options) if o is offer and m != where)
        free = (offer.limit - others) * offer.availability
        share = (free - self.work[where]) / (rate * fit.load_s[k])
        if b.adapters_gib > 0:
            share = min(share, (free * fit.adapters_gib - self.adapters[where]) / b.adapters_gib)
        return max(0.0, share)

    def _take(self, k: int, where: int, share: float) -> None:
        b = self.problem.buckets[k]
        rate = b.rates[self.t] * self.factor * share
        if where >= len(self.options):
            name = self.problem.apis[where - len(self.options)].name
            requests, tokens = self.called[name]
            self.called[name] = (requests + rate, tokens + rate * (b.prompt_tokens + b.output_tokens))
            self.shares[k, name] += share
            return
        offer, fit = self.options[where]
        self.work[where] += rate * fit.load_s[k]
        self.adapters[where] += b.adapters_gib * share
        self.shares[k, _pool(offer, fit)] += share

    def _count(self, m: int) -> int:
        offer, fit = self.options[m]
        if not self.work[m]:
            return 0
        there = max(self.work[m], self.adapters[m] / fit.adapters_gib if fit.adapters_gib else 0.0)
        return math.ceil(there / offer.availability - _FULL)

    def machines(self) -> list[tuple[tuple[Pool, Purchase], int]]:
        counted = [((_pool(o, f), o.purchase), self._count(m)) for m, (o, f) in enumerate(self.options)]
        return [each for each in counted if each[1]]


def _pool(offer: Offer, fit: Fit) -> Pool:
    return Pool(offer.place, offer.machine, fit.model, fit.pace)


def _plan(
    problem: Problem,
    counts: dict[tuple[Pool, Purchase], list[int]],
    shares: dict[tuple[int, Pool | str], list[float]],
) -> Plan | None:
    rented = tuple(Rented(pool, purchase, tuple(n)) for (pool, purchase), n in counts.items())
    reserved = dict(problem.committed)
    taken: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(problem.periods))
    for (pool, purchase), n in counts.items():
        if purchase == "reserved":
            taken[pool.place, pool.machine] = [
                a + b for a, b in zip(taken[pool.place, pool.machine], n, strict=True)
            ]
    for key, n in taken.items():
        reserved[key] = max(reserved.get(key, 0), *n)
    worlds = [s.name for s in problem.likely]
    routes = tuple(Route(w, k, target, tuple(row)) for w in worlds for (k, target), row in shares.items())
    plan = Plan(rented, reserved, routes, cost_of(problem, rented, reserved, routes), 0.0, method="greedy")
    try:
        verify(plan, problem)
    except BrokenPlan:
        return None
    return plan
