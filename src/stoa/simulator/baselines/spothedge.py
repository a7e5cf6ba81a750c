"""SkyServe's placement over spot and on-demand machines, SpotHedge.

Source: Mao, Xia et al., "SkyServe: Serving AI Models across Regions and Clouds with Spot Instances", EuroSys 2025
(arXiv 2411.01438), its dynamic placement and dynamic fallback; sky/serve/spot_placer.py (`DynamicFallbackSpotPlacer`)
and sky/serve/autoscalers.py (`FallbackRequestRateAutoscaler`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stoa.fleet.policies.facts import Decision, Launch, Offer, ReplicaSeen, Snapshot
from stoa.simulator.baselines.parts import cheapest, ready, serving, surplus


@dataclass(frozen=True, slots=True)
class HedgeMemory:
    preempted: frozenset[str] = frozenset()  # zones that lost or refused a machine and gave none since
    looked_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class SpotHedge:
    """A placement. With N replicas wanted, N + `extra` are asked for on spot, and
    min(N, N + extra - ready spot replicas) stand on demand until spot replicas are ready.

    A zone that takes a replica away or refuses one is set aside until a launch there succeeds or fewer than two zones are
    left, when all are tried again. The next spot replica goes to a zone without one, if any, and among these to the
    cheapest; of equally cheap zones to the one with the fewest replicas (the source takes the first, which
    would pile up replicas where there are more of them than zones).

    `announced_end`: a spot replica whose end has been announced no longer counts as ready. SkyServe learns of a
    preemption when it has happened; hence False by default.
    """

    extra: int = 1
    base_on_demand: int = 0  # always on demand, taken off the spot replicas
    announced_end: bool = False

    def initial(self) -> HedgeMemory:
        return HedgeMemory()

    def place(self, seen: Snapshot, target: int, memory: HedgeMemory) -> tuple[Decision, HedgeMemory]:
        if not any(o.offer.market == "spot" for o in seen.offers):
            raise ValueError("SpotHedge needs a spot offer")
        preempted = zones_set_aside(seen, memory)
        spot = [r for r in serving(seen.replicas, "spot") if not (self.announced_end and r.ends_s < math.inf)]
        on_demand = serving(seen.replicas, "on_demand")
        base = min(self.base_on_demand, target)
        wanted_spot = target - base + self.extra if target else 0
        wanted_on_demand = base + max(0, min(target - base, wanted_spot - ready(spot)))
        launch = [*_spread(seen, preempted, spot, wanted_spot - len(spot))]
        if wanted_on_demand > len(on_demand):
            offer = cheapest(seen.offers, "on_demand").offer
            launch.append(Launch(offer, wanted_on_demand - len(on_demand)))
        drain = surplus(spot, len(spot) - wanted_spot) + surplus(on_demand, len(on_demand) - wanted_on_demand)
        return Decision(tuple(launch), tuple(drain)), HedgeMemory(preempted, seen.now_s)


def zones_set_aside(seen: Snapshot, memory: HedgeMemory) -> frozenset[str]:
    """The zones in question after what has happened since the last look; what a decision led to has its time."""
    preempted = set(memory.preempted)
    spot = [o for o in seen.offers if o.offer.market == "spot"]
    for o in spot:
        lost_s = max(o.refused_s, o.preempted_s)
        if lost_s > -math.inf and lost_s >= max(memory.looked_s, o.launched_s):
            preempted.add(o.offer.zone)
        elif o.launched_s >= memory.looked_s:
            preempted.discard(o.offer.zone)
    if len({o.offer.zone for o in spot} - preempted) < 2:
        preempted.clear()
    return frozenset(preempted)


def _spread(
    seen: Snapshot, preempted: frozenset[str], spot: Sequence[ReplicaSeen], count: int
) -> list[Launch]:
    active = [o.offer for o in seen.offers if o.offer.market == "spot" and o.offer.zone not in preempted]
    held = Counter(r.offer.zone for r in spot)
    chosen: Counter[Offer] = Counter()
    for _ in range(count):
        fresh = [o for o in active if not held[o.zone]]
        best = min(fresh or active, key=lambda o: (o.hourly, held[o.zone]))
        held[best.zone] += 1
        chosen[best] += 1
    return [Launch(offer, n) for offer, n in chosen.items()]
