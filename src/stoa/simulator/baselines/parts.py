"""A baseline is a scaler, which says how many replicas, and a placement, which says where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from stoa.fleet.policies.facts import Decision, Market, OfferSeen, ReplicaSeen, Snapshot

ANY = 1_000_000  # replicas: no upper bound
M = TypeVar("M")
P = TypeVar("P")


class Scaler(Protocol, Generic[M]):
    """How many replicas there should be, starting ones included."""

    def initial(self) -> M: ...

    def target(self, seen: Snapshot, memory: M) -> tuple[int, M]: ...


class Placement(Protocol, Generic[P]):
    """Which offers to launch at, and which replicas to drain, for `target` serving replicas."""

    def initial(self) -> P: ...

    def place(self, seen: Snapshot, target: int, memory: P) -> tuple[Decision, P]: ...


@dataclass(frozen=True, slots=True)
class Both(Generic[M, P]):
    """An `Autoscaler`: the scaler's target, held between the snapshot's bounds, handed to the placement."""

    scaler: Scaler[M]
    placement: Placement[P]

    def initial(self) -> tuple[M, P]:
        return self.scaler.initial(), self.placement.initial()

    def decide(self, seen: Snapshot, memory: tuple[M, P]) -> tuple[Decision, tuple[M, P]]:
        target, scaled = self.scaler.target(seen, memory[0])
        target = max(seen.bounds.min_replicas, min(seen.bounds.max_replicas, target))
        decision, placed = self.placement.place(seen, target, memory[1])
        return decision, (scaled, placed)


def serving(replicas: Iterable[ReplicaSeen], market: Market | None = None) -> list[ReplicaSeen]:
    """Replicas that are starting or ready, of one market or of any."""
    return [r for r in replicas if r.state != "draining" and (market is None or r.offer.market == market)]


def ready(replicas: Iterable[ReplicaSeen]) -> int:
    return sum(r.state == "ready" for r in replicas)


def surplus(replicas: Iterable[ReplicaSeen], count: int) -> list[str]:
    """Ids of `count` replicas to drain: starting ones first, then the least busy, then the newest."""
    order = sorted(replicas, key=lambda r: (r.state == "ready", r.running, -r.since_s, r.id))
    return [r.id for r in order[: max(0, count)]]


def cheapest(offers: Sequence[OfferSeen], market: Market) -> OfferSeen:
    """The offer of the lowest price, the first of equals. ValueError if the market offers nothing."""
    of_market = [o for o in offers if o.offer.market == market]
    if not of_market:
        raise ValueError(f"no {market} offer in the snapshot")
    return min(of_market, key=lambda o: o.offer.hourly)


def mean_of_last(series: Sequence[float], bin_s: float, window_s: float) -> float:
    """Mean of the newest `window_s` seconds of a series in bins; 0 where there are none yet."""
    newest = series[-max(1, round(window_s / bin_s)) :]
    return sum(newest) / len(newest) if len(newest) else 0.0


def in_flight(seen: Snapshot, window_s: float) -> float:
    """Mean number of requests held, queued or running over the newest `window_s` seconds."""
    return mean_of_last(seen.demand.in_flight, seen.demand.bin_s, window_s)
