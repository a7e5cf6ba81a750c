"""A plan made with knowledge of the future, followed: how near to the lower bound a fleet can come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot


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
