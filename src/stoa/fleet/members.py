"""Replicas as the fleet counts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stoa.engine.stats import EngineStats
from stoa.fleet.policies.router import Ask, Place, ReplicaLoad, View
from stoa.fleet.replica import Replica

if TYPE_CHECKING:
    from stoa.fleet.journey import Leg


@dataclass(eq=False)
class Member:
    """A replica, its load in the router's view, and the legs that run there."""

    replica: Replica
    load: ReplicaLoad
    view: View
    legs: set[Leg] = field(default_factory=set)
    draining: bool = False  # what runs there should move
    leaving: bool = False  # it is being taken away

    def take(self, ask: Ask) -> Place:
        """A place there, whether or not the router would choose it."""
        return self.view.send(self.view.index[self.load.id], ask)


def together(stats: list[EngineStats]) -> EngineStats:
    """Of several engines: sums, the mean use of memory, and all adapters."""
    pages = sum(s.pool_pages for s in stats)
    sums = {
        name: sum(getattr(s, name) for s in stats)
        for name in EngineStats.__struct_fields__
        if isinstance(getattr(stats[0], name), (int, float))
    }
    return EngineStats(
        **sums
        | {
            "kv_usage": sum(s.kv_usage * s.pool_pages for s in stats) / max(pages, 1),
            "page_bytes": stats[0].page_bytes,
            "running_adapters": sorted({a for s in stats for a in s.running_adapters}),
            "waiting_adapters": sorted({a for s in stats for a in s.waiting_adapters}),
            "held_adapters": sorted({a for s in stats for a in s.held_adapters}),
        }
    )
