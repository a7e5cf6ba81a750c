"""A plan made with knowledge of the future, followed: how near to the lower bound a fleet can come. Of demand
(`Clairvoyant`, a scaler) and of spot machines (`Foresight`, a placement)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoa.fleet.policies.consolidation import first_to_go, give_back
from stoa.fleet.policies.facts import Decision, Launch, ReplicaSeen, Snapshot
from stoa.simulator.baselines.parts import cheapest, serving
from stoa.simulator.spot import SpotTrace


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """A scaler. `plan`: ready replicas by bins of `bin_s` from second 0, as `optimum.lower_bound` gives them; launched
    `startup_s` ahead, with `headroom` times as many for what the plan leaves out (whole replicas, queues)."""

    plan: Sequence[float]
    bin_s: float
    startup_s: float
    headroom: float = 0.1
    spare: float = 0.0  # replicas on top
    hold_s: float = 0.0  # what is needed again within this time is kept

    def initial(self) -> None:
        return None

    def target(self, seen: Snapshot, memory: None) -> tuple[int, None]:
        first = int(seen.now_s / self.bin_s)
        last = int((seen.now_s + self.startup_s + self.hold_s) / self.bin_s)
        coming = self.plan[first : last + 1]
        most = max(coming) if len(coming) else (self.plan[-1] if len(self.plan) else 0.0)
        return math.ceil(most * (1.0 + self.headroom) + self.spare - 1e-6), None


@dataclass(frozen=True, slots=True)
class Foresight:
    """A placement that knows how many spot machines each zone will have. It launches where machines last longest, nowhere
    for less than `least_s` after their start, and before those are lost that it has; the rest is on demand."""

    spot: Mapping[str, SpotTrace]  # by zone
    least_s: float = 600.0

    def initial(self) -> None:
        return None

    def place(self, seen: Snapshot, target: int, memory: None) -> tuple[Decision, None]:
        spot = [r for r in serving(seen.replicas, "spot") if r.ends_s == math.inf]
        dear = serving(seen.replicas, "on_demand")
        held = Counter(r.offer.zone for r in spot)
        offers = {o.offer.zone: o.offer for o in seen.offers if o.offer.market == "spot"}
        startup_s = max((o.startup_s for o in offers.values()), default=0.0)
        soon_s = seen.now_s + startup_s + 2 * seen.demand.bin_s
        lasting = sum(min(n, self._least(zone, seen.now_s, soon_s)) for zone, n in held.items())
        launch: Counter[str] = Counter()
        for _ in range(target - lasting):
            ends_s = {zone: self._lost_s(zone, held[zone] + 1, seen.now_s) for zone in offers}
            best = max(ends_s, key=lambda z: (ends_s[z], -offers[z].hourly), default=None)
            if best is None or ends_s[best] < seen.now_s + startup_s + self.least_s:
                break
            held[best] += 1
            launch[best] += 1
        launches = [Launch(offers[zone], n) for zone, n in launch.items()]
        missing = target - lasting - launch.total() - len(dear)
        if missing > 0:
            launches.append(Launch(cheapest(seen.offers, "on_demand").offer, missing))
        return Decision(tuple(launches), tuple(self._drain(seen, target, spot, dear))), None

    def _drain(
        self, seen: Snapshot, target: int, spot: Sequence[ReplicaSeen], dear: Sequence[ReplicaSeen]
    ) -> list[str]:
        """What is beyond the target: on-demand replicas, then those that are lost first; ready ones only while as many as
        the target are ready."""
        first_lost = sorted(spot, key=lambda r: self._lost_s(r.offer.zone, 1, seen.now_s))
        excess = max(0, len(spot) + len(dear) - target)
        ready = sum(r.state == "ready" for r in (*spot, *dear))
        return give_back([*first_to_go(dear), *first_lost][:excess], ready - target)

    def _least(self, zone: str, from_s: float, until_s: float) -> int:
        """The fewest machines that the zone has in this time."""
        trace = self.spot[zone]
        least, at_s = trace.capacity(from_s), trace.next_change_s(from_s)
        while at_s < until_s:
            least, at_s = min(least, trace.capacity(at_s)), trace.next_change_s(at_s)
        return least

    def _lost_s(self, zone: str, count: int, now_s: float) -> float:
        """When the zone has fewer than `count` machines; a day ahead is far enough."""
        trace, at_s = self.spot[zone], now_s
        while at_s < now_s + 86_400.0:
            if trace.capacity(at_s) < count:
                return at_s
            at_s = trace.next_change_s(at_s)
        return math.inf
