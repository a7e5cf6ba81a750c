"""What policies see and what they decide: plain values, filled by the live fleet or by the simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from stoa.fleet.policies.profile import Profile

Market = Literal["spot", "on_demand"]
ReplicaState = Literal["starting", "ready", "draining"]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a replica can be had, and for how much."""

    zone: str  # a failure domain: what goes away together
    market: Market
    hourly: float  # USD, from launch to end
    startup_s: float  # from launch to the first request it can serve


@dataclass(frozen=True, slots=True)
class OfferSeen:
    """What is known of an offer. Times are of the same clock as `Snapshot.now_s`; -inf: never."""

    offer: Offer
    launched_s: float = -math.inf  # last time a launch succeeded
    refused_s: float = -math.inf  # last time a launch failed for want of capacity
    preempted_s: float = -math.inf  # last time a replica was taken away


@dataclass(frozen=True, slots=True)
class ReplicaSeen:
    id: str
    offer: Offer
    state: ReplicaState
    since_s: float  # when it entered this state
    running: int = 0  # requests sent to it that have not ended, those in its queue included
    waiting: int = 0  # of these, without a first token
    ends_s: float = math.inf  # the machine has announced its end


@dataclass(frozen=True, slots=True)
class Demand:
    """Arrivals in bins of `bin_s` seconds, oldest first; the last bin ends at `Snapshot.now_s`."""

    bin_s: float
    requests: Sequence[float]  # arrivals per bin
    prompt_tokens: Sequence[float]  # of these arrivals, those found in prefix caches not counted
    output_tokens: Sequence[float]  # generated per bin
    in_flight: Sequence[float]  # mean number of requests held, queued or running per bin
    late: Sequence[float]  # requests per bin whose first token came, or is still missing, after the target
    held: int = 0  # requests that no replica has taken yet
    oldest_wait_s: float = 0.0  # of the requests without a first token
    # Requests held, queued or running that a plan confines to places, by `modelplan.confined_key`.
    confined: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slo:
    """Share of requests whose first token must come in time."""

    ttft_s: float
    attainment: float = 0.99


@dataclass(frozen=True, slots=True)
class Bounds:
    min_replicas: int = 0
    max_replicas: int = 1_000_000
    idle_s: float = 300.0  # without a request, before the last replica goes (min_replicas 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One base model's fleet at one moment."""

    now_s: float
    replicas: Sequence[ReplicaSeen]
    demand: Demand
    offers: Sequence[OfferSeen]
    profile: Profile  # of one replica
    slo: Slo
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Launch:
    offer: Offer
    count: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Launches may be refused for want of capacity; the next snapshot tells. Drained replicas take nothing new, and
    end once their requests have moved or ended."""

    launch: Sequence[Launch] = ()
    drain: Sequence[str] = ()
    reason: str = ""  # for people


class Autoscaler(Protocol, Generic[M]):
    """Implemented by ours and by each baseline of the simulator. Parameters are fields of a frozen dataclass; what must
    be remembered between calls is `memory`, a value that each call gets and returns."""

    def initial(self) -> M: ...

    def decide(self, seen: Snapshot, memory: M) -> tuple[Decision, M]: ...
