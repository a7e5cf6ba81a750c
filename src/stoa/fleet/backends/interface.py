"""What a controller asks of those who run replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stoa.errors import EngineUnavailable
from stoa.fleet.policies.facts import Offer
from stoa.fleet.reports import Trouble

Phase = Literal["pending", "starting", "ready", "failed"]


class NoCapacity(EngineUnavailable):
    """No machine is to be had at that offer now, or at any; the message says why, to people who know the offer."""

    code = "no_capacity"


@dataclass(frozen=True, slots=True)
class Status:
    """A replica as its backend sees it."""

    id: str
    offer: Offer
    phase: Phase  # pending: it has no machine yet; starting: its engine loads
    address: str = ""  # HOST:PORT, once ready
    token: str = ""
    node: str = ""
    ends_in_s: float | None = None  # its machine has announced its end
    trouble: Trouble | None = None  # of one that failed
    silent: bool = False  # it did not answer this time; the rest is from before


class Backend(Protocol):
    """Implemented by `LocalBackend` and `RayBackend`. Calls raise ClusterUnreachable when they cannot tell."""

    changed: Callable[
        [], None
    ]  # to be called, on the event loop, when a look would show news; set by the controller

    async def offers(self) -> Sequence[Offer]:
        """Where replicas may be launched now; whether there is room shows when one is. Raises NoCapacity if that is
        nowhere."""
        ...

    async def launch(self, replica_id: str, offer: Offer) -> None:
        """Returns once it is under way. Raises NoCapacity."""
        ...

    async def stop(self, replica_id: str) -> None:
        """Ends it now. One that does not exist is no error."""
        ...

    async def look(self) -> Sequence[Status]:
        """All that exist, whoever has launched them. A failed one is listed until it is stopped."""
        ...

    async def close(self) -> None:
        """Lets go; replicas that outlive this process go on."""
        ...
