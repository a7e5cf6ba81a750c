"""SkyServe's autoscaler by request rate.

Source: "Autoscaling" of the SkyPilot documentation; sky/serve/autoscalers.py (`RequestRateAutoscaler`) and
sky/serve/constants.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot
from stoa.simulator.baselines.parts import ANY, mean_of_last


@dataclass(frozen=True, slots=True)
class RateMemory:
    target: int
    decided_s: float = -math.inf
    up: int = 0  # decisions in a row that wanted more
    down: int = 0


@dataclass(frozen=True, slots=True)
class RequestRate:
    """A scaler: requests per second over the last window divided by what one replica is to take; followed once it has
    been wanted for so many decisions in a row, at once from zero."""

    target_qps_per_replica: float
    window_s: float = 60.0
    interval_s: float = 20.0
    upscale_delay_s: float = 300.0
    downscale_delay_s: float = 1200.0
    min_replicas: int = 1
    max_replicas: int = ANY  # `min_replicas` in the source, unless set

    def initial(self) -> RateMemory:
        return RateMemory(target=self.min_replicas)

    def target(self, seen: Snapshot, memory: RateMemory) -> tuple[int, RateMemory]:
        if memory.target and seen.now_s - memory.decided_s < self.interval_s:
            return memory.target, memory
        demand = seen.demand
        per_s = mean_of_last(demand.requests, demand.bin_s, self.window_s) / demand.bin_s
        wanted = math.ceil(per_s / self.target_qps_per_replica - 1e-9)
        wanted = max(self.min_replicas, min(self.max_replicas, wanted))
        after = self._after(wanted, seen.now_s, memory)
        return after.target, after

    def _after(self, wanted: int, now_s: float, memory: RateMemory) -> RateMemory:
        if memory.target == 0:
            return RateMemory(wanted, now_s)
        up = memory.up + 1 if wanted > memory.target else 0
        down = memory.down + 1 if wanted < memory.target else 0
        if up and up >= int(self.upscale_delay_s / self.interval_s):
            return RateMemory(wanted, now_s)
        if down and down >= int(self.downscale_delay_s / self.interval_s):
            return RateMemory(wanted, now_s)
        return RateMemory(memory.target, now_s, up, down)
