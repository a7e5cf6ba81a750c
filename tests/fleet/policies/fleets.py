"""Fleets, offers and demands for tests of what is decided about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stoa.fleet.policies.facts import (
    Bounds,
    Decision,
    Demand,
    Market,
    Offer,
    OfferSeen,
    ReplicaSeen,
    ReplicaState,
    Slo,
    Snapshot,
)
from stoa.fleet.policies.profile import Profile

PROFILE = Profile(
    name="p", fixed_s=0.05, prompt_row_s=3e-4, decode_row_s=3e-4, max_num_seqs=64, max_batch_tokens=512
)
ANY, SLO = Bounds(), Slo(2.0)
NONE = Demand(10.0, [], [], [], [], [])


def offer(zone: str, market: Market = "spot", hourly: float | None = None, startup_s: float = 120.0) -> Offer:
    return Offer(zone, market, hourly if hourly is not None else 0.3 if market == "spot" else 1.0, startup_s)


def replica(
    name: str, of: Offer, state: ReplicaState = "ready", running: int = 0, **more: float
) -> ReplicaSeen:
    return ReplicaSeen(name, of, state, 0.0, running=running, ends_s=more.get("ends_s", math.inf))


def seen(
    replicas: Sequence[ReplicaSeen] = (),
    offers: Sequence[OfferSeen | Offer] = (),
    *,
    now_s: float = 1000.0,
    demand: Demand = NONE,
    bounds: Bounds = ANY,
    slo: Slo = SLO,
) -> Snapshot:
    known = [o if isinstance(o, OfferSeen) else OfferSeen(o) for o in offers]
    return Snapshot(now_s, tuple(replicas), demand, tuple(known), PROFILE, slo, bounds)


def steady(
    requests: float, bins: int = 60, *, bin_s: float = 10.0, held: int = 0, late: float = 0.0
) -> Demand:
    """So many requests each bin, of 300 prompt and 50 output tokens."""
    return Demand(
        bin_s,
        [requests] * bins,
        [300.0 * requests] * bins,
        [50.0 * requests] * bins,
        [requests] * bins,
        [late] * bins,
        held=held,
    )


@dataclass
class World:
    """Carries decisions out. Zones in `closed` refuse spot; what is launched is ready after the offer's startup."""

    offers: list[Offer]
    now_s: float = 0.0
    closed: set[str] = field(default_factory=set)
    replicas: dict[str, ReplicaSeen] = field(default_factory=dict)
    known: dict[Offer, OfferSeen] = field(default_factory=dict)
    refused: list[tuple[float, Offer]] = field(default_factory=list)
    launched: int = 0

    def look(self, demand: Demand, bounds: Bounds) -> Snapshot:
        for r in list(self.replicas.values()):
            if r.state == "starting" and self.now_s >= r.since_s + r.offer.startup_s:
                self.replicas[r.id] = ReplicaSeen(r.id, r.offer, "ready", self.now_s)
        known = [self.known.get(o, OfferSeen(o)) for o in self.offers]
        return seen(tuple(self.replicas.values()), known, now_s=self.now_s, demand=demand, bounds=bounds)

    def carry_out(self, decision: Decision) -> None:
        for name in decision.drain:
            del self.replicas[name]
        for launch in decision.launch:
            for _ in range(launch.count):
                self._launch(launch.offer)

    def lose(self, zone: str) -> None:
        """The zone takes its spot replicas back, and has none."""
        for r in list(self.replicas.values()):
            if r.offer.zone == zone and r.offer.market == "spot":
                del self.replicas[r.id]
                old = self.known.get(r.offer, OfferSeen(r.offer))
                self.known[r.offer] = OfferSeen(r.offer, old.launched_s, old.refused_s, self.now_s)
        self.closed.add(zone)

    def _launch(self, of: Offer) -> None:
        old = self.known.get(of, OfferSeen(of))
        if of.market == "spot" and of.zone in self.closed:
            self.known[of] = OfferSeen(of, old.launched_s, self.now_s, old.preempted_s)
            self.refused.append((self.now_s, of))
            return
        self.known[of] = OfferSeen(of, self.now_s, old.refused_s, old.preempted_s)
        self.launched += 1
        name = f"r{self.launched}"
        self.replicas[name] = ReplicaSeen(name, of, "starting", self.now_s)
