"""Machines that exist only on paper, and a policy that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from stoa.fleet.backends.interface import NoCapacity, Status
from stoa.fleet.policies.facts import Decision, Launch, Offer, Snapshot
from stoa.fleet.reports import ClusterUnreachable, Trouble

SPOT = Offer("a", "spot", 0.3, 60.0)
ON_DEMAND = Offer("b", "on_demand", 1.0, 60.0)


class FakeBackend:
    """Tests move replicas on; what is launched begins as pending."""

    def __init__(self) -> None:
        self.replicas: dict[str, Status] = {}
        self.full: set[Offer] = set()  # refuse launches
        self.too_small = False  # every machine
        self.unreachable = False
        self.deaf = False  # stop does nothing
        self.stopped: list[str] = []
        self.closed = False
        self.changed: Callable[[], None] = lambda: None

    async def offers(self) -> Sequence[Offer]:
        if self.too_small:
            raise NoCapacity("no machine is large enough")
        return [SPOT, ON_DEMAND]

    async def launch(self, replica_id: str, offer: Offer) -> None:
        self._reach()
        if offer in self.full:
            raise NoCapacity("sold out")
        self.replicas[replica_id] = Status(replica_id, offer, "pending")

    async def stop(self, replica_id: str) -> None:
        self._reach()
        self.stopped.append(replica_id)
        if not self.deaf:
            self.replicas.pop(replica_id, None)

    async def look(self) -> Sequence[Status]:
        self._reach()
        return list(self.replicas.values())

    async def close(self) -> None:
        self.closed = True

    def start(self, replica_id: str) -> None:
        self._change(replica_id, phase="starting")

    def ready(self, replica_id: str) -> None:
        self._change(replica_id, phase="ready", address=f"{replica_id}:1", token="t")

    def fail(self, replica_id: str, trouble: Trouble) -> None:
        self._change(replica_id, phase="failed", trouble=trouble)

    def notice(self, replica_id: str, ends_in_s: float) -> None:
        self._change(replica_id, ends_in_s=ends_in_s)

    def silence(self, replica_id: str) -> None:
        self._change(replica_id, silent=True)

    def kill(self, replica_id: str) -> None:
        del self.replicas[replica_id]

    def _change(self, replica_id: str, **facts: object) -> None:
        self.replicas[replica_id] = replace(self.replicas[replica_id], **facts)  # type: ignore[arg-type]

    def _reach(self) -> None:
        if self.unreachable:
            raise ClusterUnreachable("nobody answers at fake:1")


@dataclass
class Orders:
    """A policy without judgement: keeps `wanted` replicas at `offer`, and drains what it is told to, once. Its memory
    counts calls."""

    wanted: int = 0
    offer: Offer = SPOT
    drain: list[str] = field(default_factory=list)
    seen: list[Snapshot] = field(default_factory=list)

    def initial(self) -> int:
        return 0

    def decide(self, seen: Snapshot, memory: int) -> tuple[Decision, int]:
        self.seen.append(seen)
        drain, self.drain = self.drain, []
        have = sum(r.state != "draining" for r in seen.replicas) - len(drain)
        launch = [Launch(self.offer, self.wanted - have)] if have < self.wanted else []
        return Decision(launch, drain, "told to"), memory + 1
