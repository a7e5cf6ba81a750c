"""Everything on demand: never taken away, at the full price."""

from __future__ import annotations

from dataclasses import dataclass

from stoa.fleet.policies.facts import Decision, Launch, Snapshot
from stoa.simulator.baselines.parts import cheapest, serving, surplus


@dataclass(frozen=True, slots=True)
class OnDemand:
    """A placement at the cheapest on-demand offer. With the best reactive scaler it is what a careful team without spot
    machines runs."""

    def initial(self) -> None:
        return None

    def place(self, seen: Snapshot, target: int, memory: None) -> tuple[Decision, None]:
        there = serving(seen.replicas)
        missing = target - len(there)
        if missing > 0:
            return Decision(launch=(Launch(cheapest(seen.offers, "on_demand").offer, missing),)), None
        return Decision(drain=tuple(surplus(there, -missing))), None
