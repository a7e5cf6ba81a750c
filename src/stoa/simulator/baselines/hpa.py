"""Kubernetes' Horizontal Pod Autoscaler on concurrency.

Source: "Horizontal Pod Autoscaling", sections "Algorithm details" and "Configurable scaling behavior" of the Kubernetes
documentation; defaults from pkg/apis/autoscaling/v2/defaults.go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot
from stoa.simulator.baselines.parts import ANY, in_flight


@dataclass(frozen=True, slots=True)
class HpaMemory:
    target: int
    advice: tuple[tuple[float, int], ...] = ()  # (time, replicas), oldest first
    changes: tuple[tuple[float, int], ...] = ()  # (time, replicas added or, negative, removed)


@dataclass(frozen=True, slots=True)
class Hpa:
    """A scaler: desired = ceil(current x metric / target), left alone within the tolerance, then the stabilization windows,
    then the scaling policies (of two, the one that allows the greater change).

    The metric is the number of requests per replica, queued ones included, with the target as average value. Replicas
    that still start count as being there with nothing to do, as not-yet-ready pods do. Each call of the
    control loop stands for one sync period.
    """

    target_in_flight: float  # requests per replica
    tolerance: float = 0.1
    metric_window_s: float = 15.0  # resolution of the metric
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    up_pods: int = 4
    up_percent: float = 100.0
    down_percent: float = 100.0
    policy_period_s: float = 15.0
    min_replicas: int = 1
    max_replicas: int = ANY  # must be given in Kubernetes

    def initial(self) -> HpaMemory:
        return HpaMemory(target=self.min_replicas)

    def target(self, seen: Snapshot, memory: HpaMemory) -> tuple[int, HpaMemory]:
        now_s = seen.now_s
        desired = self._desired(in_flight(seen, self.metric_window_s), memory.target)
        kept_s = max(self.up_window_s, self.down_window_s)
        advice = (*(a for a in memory.advice if a[0] > now_s - kept_s), (now_s, desired))
        changes = tuple(c for c in memory.changes if c[0] > now_s - self.policy_period_s)
        steady = self._stabilized(now_s, memory.target, advice)
        target = self._limited(steady, memory.target, [c[1] for c in changes])
        if target != memory.target:
            changes = (*changes, (now_s, target - memory.target))
        return target, HpaMemory(target, advice, changes)

    def _desired(self, requests: float, current: int) -> int:
        ratio = requests / (self.target_in_flight * max(1, current))
        if abs(ratio - 1.0) <= self.tolerance:
            return current
        wanted = math.ceil(requests / self.target_in_flight - 1e-9)
        return max(self.min_replicas, min(self.max_replicas, wanted))

    def _stabilized(self, now_s: float, current: int, advice: tuple[tuple[float, int], ...]) -> int:
        """Up only as far as all advice of the up window agrees, down likewise; otherwise as it is."""
        up = min(n for t, n in advice if t >= now_s - self.up_window_s)
        down = max(n for t, n in advice if t >= now_s - self.down_window_s)
        return min(max(current, up), down)

    def _limited(self, wanted: int, current: int, changes: list[int]) -> int:
        if wanted > current:
            start = current - sum(c for c in changes if c > 0)
            most = max(start + self.up_pods, math.ceil(start * (1.0 + self.up_percent / 100.0)))
            return max(current, min(wanted, most))
        start = current - sum(c for c in changes if c < 0)
        least = math.floor(start * (1.0 - self.down_percent / 100.0))
        return min(current, max(wanted, least, self.min_replicas))
