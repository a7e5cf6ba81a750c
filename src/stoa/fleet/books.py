"""Who hears what engines have used."""

from __future__ import annotations

from typing import Protocol

from stoa.economics.node import Node
from stoa.engine.usage import Interval, RequestUsage


class NodeBooks(Protocol):
    """Of the engine on one node. Called in the order of events, never waits."""

    def started(self, now_ns: int, pool_bytes: int) -> None:
        """Its time counts from here."""
        ...

    def interval(self, interval: Interval) -> None: ...

    def ended(self, now_ns: int) -> None:
        """What it did since its last interval is not known. 0: it ended in order, or others keep its books from now on;
        nothing is missing."""
        ...

    def cost_nanos(self, usage: RequestUsage) -> int:
        """What a request has cost there."""
        ...


class Books(Protocol):
    """Every request that was `begun` is `used` once."""

    def node(self, node: Node) -> NodeBooks: ...

    def begun(self, request_id: str) -> None: ...

    def used(self, usage: RequestUsage, cost_nanos: int, lost_tokens: int) -> None:
        """All replicas that had the request, together. Of its completion tokens, `lost_tokens` were made by engines
        that died before they told what it used; their cost is not in `cost_nanos`."""
        ...


class NoBooks:
    """Nobody is told. Implements both."""

    def node(self, node: Node) -> NodeBooks:
        return self

    def started(self, now_ns: int, pool_bytes: int) -> None: ...
    def interval(self, interval: Interval) -> None: ...
    def ended(self, now_ns: int) -> None: ...
    def cost_nanos(self, usage: RequestUsage) -> int:
        return 0

    def begun(self, request_id: str) -> None: ...
    def used(self, usage: RequestUsage, cost_nanos: int, lost_tokens: int) -> None: ...
