"""One period of a greedy plan (`greedy.py`), in the usual world or after a loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stoa.planner.eligible import api_in_time, in_time
from stoa.planner.plan import Pool, traffic_usd
from stoa.planner.problem import Fit, Offer, Problem

HOUR_S = 3600.0
_FULL = 1e-9
Counts = Mapping[int, int]  # machines by number of the option


class Market:
    """What there is to choose from. Options: offers bought in these ways, for each model that they may run; hosted models
    are numbered on after them. `by_token`: cheap is who costs the least by the token, else who adds the least."""

    def __init__(
        self, problem: Problem, purchases: Collection[str], *, scarce_first: bool, by_token: bool
    ) -> None:
        self.problem, self.purchases = problem, purchases
        self.scarce_first, self.by_token = scarce_first, by_token
        self.options: list[tuple[Offer, Fit]] = [
            (o, f)
            for o in problem.offers
            if o.purchase in purchases and o.limit != 0
            for f in problem.fits
            if f.machine == o.machine
        ]
        self.of_offer: dict[int, list[int]] = defaultdict(list)
        for m, (offer, _) in enumerate(self.options):
            self.of_offer[id(offer)].append(m)
        self.choices = [self._choices(k) for k in range(len(problem.buckets))]

    def target(self, m: int) -> Pool | str:
        if m >= len(self.options):
            return self.problem.apis[m - len(self.options)].name
        offer, fit = self.options[m]
        return Pool(offer.place, offer.machine, fit.model, fit.pace)

    def _choices(self, k: int) -> list[tuple[float, float, int]]:
        """Where a bucket may go: USD by the token, of which beside machines, number of the option, or that of an API after
        them; the cheapest first."""
        p, b = self.problem, self.problem.buckets[k]
        service = next(s for s in p.services if s.name == b.service)
        places = next(g for g in p.groups if g.name == b.group).places
        found = []
        for m, (offer, fit) in enumerate(self.options):
            if offer.place in places and in_time(p, b, service, fit, offer.place, k):
                beside = traffic_usd(p, k, offer.place)
                found.append((offer.hourly_usd * fit.load_s[k] / HOUR_S + beside, beside, m))
        for a, api in enumerate(p.apis):
            if api.place in places and api_in_time(p, b, service, api):
                usd = api.request_usd(b.prompt_tokens, b.output_tokens) + traffic_usd(p, k, api.place)
                found.append((usd, usd, len(self.options) + a))
        return sorted(found)


@dataclass
class World:
    """One period: `factor` times its mean rates, machines that are `there` anyway, options that are `lost` (None: it is the
    usual world), and how full machines may be."""

    g: Market
    t: int
    factor: float
    there: Counts
    lost: frozenset[int] | None = None
    strain: float = 1.0
    work: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # machines that it keeps busy
    adapters: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    called: dict[int, tuple[float, float]] = field(default_factory=lambda: defaultdict(lambda: (0.0, 0.0)))
    shares: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))

    def fill(self, buckets: Sequence[int]) -> bool:
        rate = [b.rates[self.t] for b in self.g.problem.buckets]
        order = sorted((k for k in buckets if rate[k] > 0), key=lambda k: -rate[k] * self._tokens(k))
        if self.g.scarce_first:
            order.sort(key=lambda k: len(self.g.choices[k]))
        return all(self._put(k, 1.0) for k in order)

    def _tokens(self, k: int) -> float:
        b = self.g.problem.buckets[k]
        return b.prompt_tokens + b.output_tokens

    def _put(self, k: int, share: float, *, avoid: int = -1) -> bool:
        """First into machines that run already, where those that are there anyway or the added cost count; after a loss to
        hosted models as well, for what it costs by the request is not reckoned with."""
        choices = [c for c in self.g.choices[k] if c[2] not in (self.lost or ()) and c[2] != avoid]
        if self.there or not self.g.by_token or avoid >= 0:
            for _, _, m in sorted(choices, key=lambda c: c[1]):
                hosted = m >= len(self.g.options)
                if share > _FULL and (self.lost is not None if hosted else self.work[m] or m in self.there):
                    share -= self._take(k, m, min(share, self._room(k, m, 0 if hosted else self._count(m))))
        while share > _FULL:
            open_ = [
                (c, room)
                for c in choices
                if (room := min(share, self._room(k, c[2], self._most(c[2])))) > _FULL
            ]
            if not open_:
                return False
            choice, room = open_[0]
            if not self.g.by_token or avoid >= 0:
                choice, room = min(open_, key=lambda each: self._added(k, *each) / each[1])
            share -= self._take(k, choice[2], room)
        return True

    def _added(self, k: int, choice: tuple[float, float, int], share: float) -> float:
        """USD an hour that a share of a bucket adds there."""
        _, beside, m = choice
        usd = beside * self.g.problem.buckets[k].rates[self.t] * share * HOUR_S
        if m >= len(self.g.options):
            return usd
        before = self._count(m)
        self._take(k, m, share)
        more = self._count(m) - before
        self._take(k, m, -share)
        offer, _ = self.g.options[m]
        return usd + more * offer.hourly_usd * offer.availability

    def _most(self, m: int) -> float:
        """Machines of the option that there may be."""
        if m >= len(self.g.options) or self.g.options[m][0].limit is None:
            return math.inf
        offer, _ = self.g.options[m]
        return (offer.limit or 0) - sum(self._count(o) for o in self.g.of_offer[id(offer)] if o != m)

    def _room(self, k: int, m: int, machines: float) -> float:
        """Share of the bucket that still fits."""
        b = self.g.problem.buckets[k]
        rate = b.rates[self.t] * self.factor
        if m >= len(self.g.options):
            api = self.g.problem.apis[m - len(self.g.options)]
            requests, tokens = self.called[m]
            return max(
                0.0, min(api.requests_per_s - requests, (api.tokens_per_s - tokens) / self._tokens(k)) / rate
            )
        offer, fit = self.g.options[m]
        free = machines * offer.availability
        share = (free * self.strain - self.work[m]) / (rate * fit.load_s[k])
        if b.adapters_gib > 0:
            share = min(share, (free * fit.adapters_gib - self.adapters[m]) / b.adapters_gib)
        return max(0.0, share)

    def _take(self, k: int, m: int, share: float) -> float:
        b = self.g.problem.buckets[k]
        rate = b.rates[self.t] * self.factor * share
        if m >= len(self.g.options):
            requests, tokens = self.called[m]
            self.called[m] = (requests + rate, tokens + rate * self._tokens(k))
        else:
            self.work[m] += rate * self.g.options[m][1].load_s[k]
            self.adapters[m] += b.adapters_gib * share
        self.shares[k, m] += share
        return share

    def _count(self, m: int) -> int:
        offer, fit = self.g.options[m]
        if self.work[m] <= _FULL:
            return self.there.get(m, 0)
        busy = max(self.work[m] / self.strain, self.adapters[m] / fit.adapters_gib)
        return max(self.there.get(m, 0), math.ceil(busy / offer.availability - _FULL))

    def counts(self) -> dict[int, int]:
        every = {m: self._count(m) for m in {*self.work, *self.there}}
        return {m: n for m, n in every.items() if n}

    def usd(self) -> float:
        """An hour, reserved machines by the hour too."""
        machines = sum(
            n * self.g.options[m][0].hourly_usd * self.g.options[m][0].availability
            for m, n in self.counts().items()
        )
        beside = {(k, m): usd for k, choices in enumerate(self.g.choices) for _, usd, m in choices if usd}
        rates = [b.rates[self.t] for b in self.g.problem.buckets]
        return machines + sum(
            share * beside.get((k, m), 0.0) * rates[k] * HOUR_S for (k, m), share in self.shares.items()
        )

    # -- part-filled machines

    def consolidated(self) -> World:
        """Option after option, the emptiest last machine first: what only its last machine does goes elsewhere, if that is
        cheaper."""
        world = self
        parts = {m: self.work[m] / self.g.options[m][0].availability % 1 for m in self.counts()}
        for m in sorted(parts, key=lambda m: parts[m]):
            tried = world._emptied(m)
            if tried is not None and tried.usd() < world.usd() - _FULL:
                world = tried
        return world

    def _emptied(self, m: int) -> World | None:
        offer, fit = self.g.options[m]
        tried = replace(
            self, work=self.work.copy(), adapters=self.adapters.copy(), called=self.called.copy(), shares=self.shares.copy()
        )  # fmt: skip
        over = self.work[m] - (self._count(m) - 1) * offer.availability
        moved = []
        for k in [k for k, at in self.shares if at == m]:
            rate = self.g.problem.buckets[k].rates[self.t] * self.factor
            share = min(self.shares[k, m], max(0.0, over) / (rate * fit.load_s[k]))
            over -= share * rate * fit.load_s[k]
            moved.append((k, share))
            tried._take(k, m, -share)
        return tried if all(tried._put(k, share, avoid=m) for k, share in moved) else None
