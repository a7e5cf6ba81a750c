"""What the fleet needs of a replica, whatever carries it: a process here, one elsewhere, another service.

A request that is opened ends in one of two ways, after which its receiver hears no more of it:

    events … events  used      it has ended, or was cancelled or refused; what it used is known
    events … events  lost      the replica is gone, or gave it up; the request can go on elsewhere
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stoa.economics.node import Node
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import RequestUsage
from stoa.fleet.books import Books


class Receiver(Protocol):
    """Who opened a request. Called on the event loop; never waits."""

    def events(self, events: list[TokenEvent]) -> None:
        """Each has one token, or none: where two replicas overlap in a move, the seam is between two events."""
        ...

    def used(self, usage: RequestUsage, cost_nanos: int) -> None: ...

    def lost(self) -> None: ...


class Replica(Protocol):
    changed: Callable[[], None]  # to be called when `ready` has changed; set by the fleet
    ours: bool  # an engine of this fleet: takes every request that fits the model

    @property
    def id(self) -> str: ...

    @property
    def node(self) -> Node: ...

    @property
    def ready(self) -> bool:
        """May requests be opened?"""
        ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def kernels(self) -> str:
        """Two replicas give the same tokens if these are the same."""
        ...

    @property
    def notice(self) -> str: ...

    @property
    def restarts(self) -> int: ...

    def keep_books(self, books: Books) -> None:
        """From now on `books` is told."""
        ...

    def unfit(self, request: GenerationRequest) -> str | None:
        """Why it cannot have this request, whatever its state; None: it can. One of ours always can."""
        ...

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        """Never fails: what cannot be sent is lost."""
        ...

    def cancel(self, request_id: str) -> None:
        """`used` or `lost` follows all the same. Unknown ids are ignored."""
        ...

    async def stats(self) -> EngineStats:
        """Raises EngineUnavailable when it is not up."""
        ...

    def warm(self, ref: AdapterRef) -> None: ...

    def forget(self, adapter_id: str) -> None: ...

    async def stop(self) -> None:
        """Cancels what runs, and ends."""
        ...
