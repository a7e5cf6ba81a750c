"""Knative's Pod Autoscaler (KPA).

Source: "Additional autoscaling configuration for Knative Pod Autoscaler" of the Knative documentation,
pkg/autoscaler/scaling/autoscaler.go and the defaults of the config map config-autoscaler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot
from stoa.simulator.baselines.parts import ANY, in_flight, ready


@dataclass(frozen=True, slots=True)
class KnativeMemory:
    panic_s: float = -math.inf  # last time over the threshold; -inf: no panic
    panic_replicas: int = 0  # the most asked for during this panic
    asked: tuple[tuple[float, int], ...] = ()  # (time, replicas) of the last `scale_down_delay_s`
    busy_s: float = -math.inf  # last time more than zero were wanted


@dataclass(frozen=True, slots=True)
class Knative:
    """A scaler: concurrency over the target, averaged over a stable and a panic window. Panic begins where the panic
    window asks for `panic_threshold` times the ready replicas, ends a stable window after it last did, and never scales
    down. The last replica goes `to_zero_grace_s` after nothing was wanted.

    A panic window shorter than the snapshot's bins is one bin.
    """

    container_concurrency: float = 100.0
    target_utilization: float = 0.7
    stable_window_s: float = 60.0
    panic_window_share: float = 0.1  # of the stable window
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    scale_down_delay_s: float = 0.0
    to_zero_grace_s: float = 30.0
    min_replicas: int = 0
    max_replicas: int = ANY

    def initial(self) -> KnativeMemory:
        return KnativeMemory()

    def target(self, seen: Snapshot, memory: KnativeMemory) -> tuple[int, KnativeMemory]:
        now_s, there = seen.now_s, max(1, ready(seen.replicas))
        stable = self._wanted(seen, self.stable_window_s)
        sudden = self._wanted(seen, self.stable_window_s * self.panic_window_share)
        panic_s = memory.panic_s
        if sudden / there >= self.panic_threshold:
            panic_s = now_s
        elif now_s - panic_s > self.stable_window_s:
            panic_s = -math.inf
        wanted, most = self._paced(stable, there), 0
        if panic_s > -math.inf:
            most = max(memory.panic_replicas, wanted, self._paced(sudden, there))
            wanted = most
        asked = (*(a for a in memory.asked if a[0] > now_s - self.scale_down_delay_s), (now_s, wanted))
        wanted = max(self.min_replicas, min(self.max_replicas, max(n for _, n in asked)))
        busy_s = now_s if wanted else memory.busy_s
        if wanted == 0 and now_s - busy_s < self.to_zero_grace_s:
            wanted = 1
        return wanted, KnativeMemory(panic_s, most, asked, busy_s)

    def _wanted(self, seen: Snapshot, window_s: float) -> int:
        target = self.container_concurrency * self.target_utilization
        return math.ceil(in_flight(seen, window_s) / target - 1e-9)

    def _paced(self, wanted: int, there: int) -> int:
        most = math.ceil(self.max_scale_up_rate * there)
        least = math.floor(there / self.max_scale_down_rate)
        return min(max(wanted, least), most)
