"""What a controller knows of each replica and of each gateway, and the pauses between starts that fail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from stoa.fleet.policies.facts import Offer, OfferSeen, ReplicaSeen, ReplicaState
from stoa.fleet.reports import GatewayReport, ReplicaPlace, ReplicaUse, Trouble

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_DOUBTS = 3  # starts that fail one after the other before gateways are told
_NEWS_S = 600.0  # how long a refusal is worth telling: longer than policies wait before they ask again

LifePhase = Literal["pending", "starting", "ready", "draining"]


@dataclass(slots=True)
class Life:
    """One replica: pending (no machine yet) -> starting -> ready -> draining; then it is forgotten."""

    id: str
    offer: Offer
    phase: LifePhase
    since_s: float  # in this phase
    adopted: bool = False  # launched by a controller before this one
    address: str = ""
    token: str = ""
    node: str = ""
    ends_s: float = math.inf  # its machine has announced its end
    drain_version: int = 0  # of the state that told gateways
    drain_until_s: float = math.inf
    progress: dict[str, int] = field(default_factory=dict)  # by gateway
    moved_s: float = 0.0  # when any gateway last saw it work
    reached_s: float = 0.0  # when any gateway last had a link to it
    silent: bool = False  # its backend does not reach it either

    def enter(self, phase: LifePhase, now_s: float) -> None:
        self.phase, self.since_s = phase, now_s
        self.moved_s = self.reached_s = now_s

    @property
    def state(self) -> ReplicaState:
        return "starting" if self.phase == "pending" else self.phase

    @property
    def on_its_way(self) -> bool:
        return self.phase in ("pending", "starting")

    def place(self, now_s: float) -> ReplicaPlace:
        return ReplicaPlace(
            id=self.id,
            state=self.state,
            zone=self.offer.zone,
            market=self.offer.market,
            address=self.address,
            token=self.token,
            node=self.node,
            ends_in_s=max(0.0, self.ends_s - now_s) if self.ends_s < math.inf else None,
        )

    def seen(self, uses: list[ReplicaUse]) -> ReplicaSeen:
        return ReplicaSeen(
            id=self.id,
            offer=self.offer,
            state=self.state,
            since_s=self.since_s,
            running=sum(use.running for use in uses),
            waiting=sum(use.waiting for use in uses),
            ends_s=self.ends_s,
        )

    def hear(self, gateway: str, use: ReplicaUse, now_s: float) -> None:
        """A link that is cut shows no progress."""
        if use.connected:
            self.reached_s = now_s
            if self.progress.get(gateway) != use.progress:
                self.moved_s = now_s
        self.progress[gateway] = use.progress


@dataclass(slots=True)
class Gateway:
    report: GatewayReport
    heard_s: float

    def has_left(self, life: Life, epoch: str) -> bool:
        """It knows that the replica drains, and runs nothing there."""
        told = self.report.epoch == epoch and self.report.version >= life.drain_version
        use = self.report.replicas.get(life.id)
        return told and (use is None or not use.running)


class Starts:
    """When a replica may be launched, after others failed to start."""

    def __init__(self) -> None:
        self.failed = 0  # one after the other
        self.trouble: Trouble | None = None  # of the last one
        self._retry_s = -math.inf

    def succeeded(self) -> None:
        self.failed, self.trouble, self._retry_s = 0, None, -math.inf

    def fail(self, now_s: float, trouble: Trouble) -> None:
        self.failed += 1
        self.trouble = trouble
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.failed - 1, 16))
        self._retry_s = now_s + pause_s  # also of a model that was refused: it may have been repaired

    def may_launch(self, now_s: float, on_their_way: int) -> float:
        """How many: after a failure one at a time, and none before the pause is over."""
        if not self.failed:
            return math.inf
        return 0.0 if now_s < self._retry_s or on_their_way else 1.0

    @property
    def hopeless(self) -> Trouble | None:
        """What to tell gateways."""
        told = self.trouble is not None and (self.trouble.lasting or self.failed >= _DOUBTS)
        return self.trouble if told else None


class OfferBook:
    """What is remembered of each offer."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], OfferSeen] = {}
        self._why: dict[tuple[str, str], tuple[float, str]] = {}  # of the last refusal: when, and the reason

    def list(self, offers: list[Offer]) -> list[OfferSeen]:
        """Of these offers, as they are now."""
        return [self._of(offer) for offer in offers]

    def launched(self, offer: Offer, now_s: float) -> None:
        seen = self._of(offer)
        self._put(OfferSeen(offer, now_s, seen.refused_s, seen.preempted_s))
        self._why.pop((offer.zone, offer.market), None)

    def refused(self, offer: Offer, now_s: float, why: str) -> None:
        seen = self._of(offer)
        self._put(OfferSeen(offer, seen.launched_s, now_s, seen.preempted_s))
        self._why[offer.zone, offer.market] = (now_s, why)

    def refusals(self, now_s: float) -> Iterator[str]:
        """In words, of offers where nothing has come since."""
        for (zone, market), (refused_s, why) in sorted(self._why.items()):
            if now_s - refused_s < _NEWS_S:
                yield f"{zone} ({market}): {why}"

    def preempted(self, offer: Offer, now_s: float) -> None:
        seen = self._of(offer)
        self._put(OfferSeen(offer, seen.launched_s, seen.refused_s, now_s))

    def _of(self, offer: Offer) -> OfferSeen:
        seen = self._seen.get((offer.zone, offer.market), OfferSeen(offer))
        return OfferSeen(offer, seen.launched_s, seen.refused_s, seen.preempted_s)

    def _put(self, seen: OfferSeen) -> None:
        self._seen[seen.offer.zone, seen.offer.market] = seen
