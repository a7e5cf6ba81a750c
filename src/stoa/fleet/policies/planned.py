"""The autoscaler of a fleet that follows a plan: the plan's replicas as a floor, and what demand asks for on top.

    floor     by place and market, of this period and of the one that begins within a startup time. Of machines that are not
              always there a plan asks for more than it counts on; when they are there, that would be too many. So as many
              whole ones as it counts on stand at their place, and what is left of all places is need, wherever it is
              cheapest. Where some requests may not be served everywhere, all that was asked for stands at its place
    share     of the floor that stands: what came in the last hour over what the plan had expected, at most all of it. A
              quarter of an hour of what it expects now counts as come, so a quiet night says little of the morning
    keep      as many as the floor, ready ones first; launch what is missing where it may be had
    need      of `Elastic`, which knows nothing of the plan; at least what the plan counts on now and next
    extra     need beyond what is kept or coming: `mix` decides where, among offers that the plan leaves room at. So it also
              stands in for spot machines that have gone, until they can be had again
    leave     what is extra and not needed, ready replicas only while as many as needed are ready

Requests that may not be served everywhere have one replica within their places at least while there are any, and for
`Bounds.idle_s` after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stoa.fleet.policies import autoscaler, mix
from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.consolidation import first_to_go, give_back
from stoa.fleet.policies.facts import (
    Decision,
    Demand,
    Launch,
    Market,
    Offer,
    OfferSeen,
    ReplicaSeen,
    Snapshot,
)
from stoa.fleet.policies.mix import Need, Records
from stoa.fleet.policies.modelplan import ModelPlan, places_of_key

_LOOK_S, _KNOWN_S = 3600.0, 900.0


@dataclass(frozen=True, slots=True)
class Memory:
    elastic: autoscaler.Memory = field(default_factory=autoscaler.Memory)
    asked_s: Mapping[str, float] = field(
        default_factory=dict
    )  # as `Demand.confined`: when there last were any


@dataclass(frozen=True, slots=True)
class Planned:
    """`begins_s`: Unix time when the clock of snapshots showed 0."""

    plan: ModelPlan
    begins_s: float = 0.0
    elastic: Elastic = field(default_factory=Elastic)

    def initial(self) -> Memory:
        return Memory(self.elastic.initial())

    def decide(self, seen: Snapshot, memory: Memory) -> tuple[Decision, Memory]:
        need, learned = self.elastic.need(seen, memory.elastic)
        memory = Memory(learned, self._asked_s(seen, memory.asked_s))
        pools = self._pools(seen, memory.asked_s)
        if not pools:
            decision = mix.place(seen, need, learned.records)
            return replace(decision, reason=f"none of the plan's places is here: {need.full} needed"), memory
        now = math.ceil(sum(p.sure_now for p in pools) - 1e-6)
        later = math.ceil(sum(p.sure_later for p in pools) - 1e-6)
        full = min(seen.bounds.max_replicas, max(need.full, now, later))
        decision = _decide(seen, replace(need, full=full), pools, learned.records)
        period = self.plan.period(self.plan.calendar.at(self.begins_s + seen.now_s))
        return replace(decision, reason=f"{period}: {now} planned, {need.full} needed"), memory

    def _asked_s(self, seen: Snapshot, before: Mapping[str, float]) -> Mapping[str, float]:
        there = {key: seen.now_s for key, n in seen.demand.confined.items() if n}
        kept = {key: at_s for key, at_s in before.items() if 0 <= seen.now_s - at_s < seen.bounds.idle_s}
        return {**kept, **there}

    def _pools(self, seen: Snapshot, asked_s: Mapping[str, float]) -> list[_Pool]:
        """Those of the plan that this fleet has offers of, or replicas."""
        offers: dict[tuple[str, Market], list[OfferSeen]] = {}
        for o in seen.offers:
            offers.setdefault((self.plan.place_of(o.offer.zone), o.offer.market), []).append(o)
        lasting: dict[tuple[str, Market], list[ReplicaSeen]] = {}
        for r in seen.replicas:
            if _lasts(r):
                lasting.setdefault((self.plan.place_of(r.offer.zone), r.offer.market), []).append(r)
        at_s, pools = self.begins_s + seen.now_s, []
        share = self._share(seen.demand, at_s)
        for p in self.plan.pools:
            there = offers.get((p.place, p.market), [])
            mine = first_to_go(lasting.get((p.place, p.market), ()))[::-1]
            if not there and not mine:
                continue
            lead_s = max((o.offer.startup_s for o in there), default=seen.profile.load_s) + seen.demand.bin_s
            now, later = (self.plan.calendar.at(t) for t in (at_s, at_s + lead_s))
            counts = p.replicas if self.plan.has_residency else tuple(math.floor(n + 1e-6) for n in p.sure)
            pools.append(
                _Pool(
                    p.place, tuple(there), tuple(mine), math.ceil(share * counts[now] - 1e-6),
                    math.ceil(share * counts[later] - 1e-6), p.most, share * p.sure[now], share * p.sure[later],
                )
            )  # fmt: skip
        for key in asked_s:
            _have_one(pools, places_of_key(key))
        return pools

    def _share(self, demand: Demand, at_s: float) -> float:
        expected = self.plan.section.demand
        if not expected:
            return 1.0
        bins = min(len(demand.requests), round(_LOOK_S / demand.bin_s))
        came = sum(demand.requests[len(demand.requests) - bins :])
        begins = (at_s - demand.bin_s * (i + 1) for i in range(bins))
        hoped = sum(expected[self.plan.calendar.at(t)] for t in begins) * demand.bin_s
        known = expected[self.plan.calendar.at(at_s)] * _KNOWN_S
        return min(1.0, (came + known) / (hoped + known)) if hoped + known > 0 else 1.0


@dataclass(slots=True)
class _Pool:
    """`replicas`: those that last, those to keep first. `sure_now`, `sure_later`: what the plan counts on."""

    place: str
    offers: tuple[OfferSeen, ...]
    replicas: tuple[ReplicaSeen, ...]
    now: int
    later: int
    most: float
    sure_now: float
    sure_later: float

    @property
    def floor(self) -> int:
        return max(self.now, self.later)

    @property
    def kept(self) -> tuple[ReplicaSeen, ...]:
        return self.replicas[: self.floor]


def _lasts(r: ReplicaSeen) -> bool:
    return r.state != "draining" and r.ends_s == math.inf


def _have_one(pools: Sequence[_Pool], places: frozenset[str]) -> None:
    """Raises a floor within these places to one, if all are none: where one is already, else where it is cheapest."""
    within = [p for p in pools if p.place in places and p.most >= 1]
    if within and not any(p.floor for p in within):
        chosen = min(
            within, key=lambda p: (not p.replicas, min((o.offer.hourly for o in p.offers), default=0.0))
        )
        chosen.now = chosen.later = 1
        chosen.sure_now = chosen.sure_later = 1.0


def _decide(seen: Snapshot, need: Need, pools: Sequence[_Pool], known: Records) -> Decision:
    lasting = [r for r in seen.replicas if _lasts(r)]
    room = max(0, seen.bounds.max_replicas - len(lasting))
    planned = _missing(seen, pools, known, room)
    kept = [r for p in pools for r in p.kept]
    # What was refused lately is not counted on: others are launched beside it.
    coming = sum(n for offer, n in planned.items() if not known.of(offer).refusals)
    extra = _extra(seen, pools, planned, room - sum(planned.values()))
    decision = mix.place(extra, _less(need, len(kept) + coming), known)
    launch = _capped(decision.launch, pools, planned)
    by_id = {r.id: r for r in extra.replicas}
    ready = sum(r.state == "ready" for r in lasting)
    drain = give_back((by_id[name] for name in decision.drain), ready - need.full)
    drain += mix.ending(seen, need, lasting)
    return Decision((*(Launch(o, n) for o, n in planned.items()), *launch), tuple(drain))


def _missing(seen: Snapshot, pools: Sequence[_Pool], known: Records, room: int) -> Counter[Offer]:
    """What to launch for the floor: evenly over a place's zones, cheap ones first, but not where it was just refused."""
    found: Counter[Offer] = Counter()
    for p in pools:
        there = Counter(r.offer for r in p.replicas)
        ready = [o.offer for o in p.offers if mix.is_open(o, known.of(o.offer), seen.now_s)]
        for _ in range(min(room, p.floor - len(p.kept)) if ready else 0):
            offer = min(ready, key=lambda o: (there[o], o.hourly, o.zone))
            there[offer] += 1
            found[offer] += 1
            room -= 1
    return found


def _extra(seen: Snapshot, pools: Sequence[_Pool], planned: Counter[Offer], room: int) -> Snapshot:
    """What `mix` is to see: no replica of the plan's own, and no offer that the plan leaves no room at."""
    kept = {r.id for p in pools for r in p.kept}
    others = tuple(r for r in seen.replicas if _lasts(r) and r.id not in kept)
    roomy = tuple(o for p in pools for o in p.offers if _room(p, planned) > 0)
    bounds = replace(seen.bounds, max_replicas=len(others) + room)
    return replace(seen, replicas=others, offers=roomy, bounds=bounds)


def _room(pool: _Pool, planned: Counter[Offer]) -> float:
    return pool.most - len(pool.replicas) - sum(planned[o.offer] for o in pool.offers)


def _less(need: Need, served: int) -> Need:
    return Need(max(0, need.bare - served), max(0, need.full - served), need.risk)


def _capped(launch: Sequence[Launch], pools: Sequence[_Pool], planned: Counter[Offer]) -> list[Launch]:
    """No more than the plan leaves room for. The rest finds other offers at the next look."""
    pool_of = {o.offer: i for i, p in enumerate(pools) for o in p.offers}
    room = [_room(p, planned) for p in pools]
    found = []
    for each in launch:
        count = int(min(each.count, room[pool_of[each.offer]]))
        room[pool_of[each.offer]] -= count
        if count > 0:
            found.append(Launch(each.offer, count))
    return found
