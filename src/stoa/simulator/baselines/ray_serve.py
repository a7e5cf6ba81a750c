"""Ray Serve's default autoscaling policy.

Source: "Advanced Ray Serve Autoscaling" of the Ray documentation, python/ray/serve/autoscaling_policy.py
(`replica_queue_length_autoscaling_policy`) and the defaults of `AutoscalingConfig`, Ray 2.5x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot
from stoa.simulator.baselines.parts import ANY, in_flight, ready


@dataclass(frozen=True, slots=True)
class RayMemory:
    target: int
    wish: int = 0  # +1: more replicas, -1: fewer, 0: as many
    since_s: float = 0.0  # since when without a break


@dataclass(frozen=True, slots=True)
class RayServe:
    """A scaler: ongoing requests over the target per replica, the difference to the running replicas times a factor,
    and only once the wish for more (or fewer) has lasted its delay.

    From zero the first request asks for `upscaling_factor` replicas at once; the last replica goes after
    `to_zero_delay_s` (None: `downscale_delay_s`) if `min_replicas` is 0.
    """

    target_ongoing_requests: float = 2.0
    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    min_replicas: int = 1
    max_replicas: int = ANY  # 1 in the source, which is to be set

    def initial(self) -> RayMemory:
        return RayMemory(target=self.min_replicas)

    def target(self, seen: Snapshot, memory: RayMemory) -> tuple[int, RayMemory]:
        running = ready(seen.replicas)
        ongoing = in_flight(seen, self.look_back_s)
        if running == 0:
            first = math.ceil(self.upscaling_factor) if ongoing > 0 or seen.demand.held else 0
            target = max(memory.target, first)
            return target, RayMemory(target, 0, seen.now_s)
        desired = self._desired(ongoing, running)
        if memory.target > 1:
            desired = max(1, desired)  # to zero only from one
        return self._delayed(desired, seen.now_s, memory)

    def _desired(self, ongoing: float, running: int) -> int:
        wanted = ongoing / self.target_ongoing_requests
        factor = self.upscaling_factor if wanted > running else self.downscaling_factor
        scaled = math.ceil(running + factor * (wanted - running) - 1e-9)
        if math.ceil(wanted - 1e-9) < running and scaled == running:
            scaled -= 1  # a small factor must not hold it up for ever
        return max(self.min_replicas, min(self.max_replicas, scaled))

    def _delayed(self, desired: int, now_s: float, memory: RayMemory) -> tuple[int, RayMemory]:
        wish = (desired > memory.target) - (desired < memory.target)
        since_s = memory.since_s if wish == memory.wish else now_s
        if wish and now_s - since_s >= self._delay_s(wish, memory.target):
            return desired, RayMemory(desired, 0, now_s)
        return memory.target, RayMemory(memory.target, wish, since_s)

    def _delay_s(self, wish: int, target: int) -> float:
        if wish > 0:
            return self.upscale_delay_s
        if target == 1 and self.to_zero_delay_s is not None:
            return self.to_zero_delay_s
        return self.downscale_delay_s
