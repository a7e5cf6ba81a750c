"""A replica without a process: tests say its events."""

from __future__ import annotations

from collections.abc import Callable

from stoa.economics.node import Node
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import RequestUsage
from stoa.fleet.books import Books
from stoa.fleet.replica import Receiver


class FakeReplica:
    """Implements `Replica`. While `refuses` is above 0, it loses what is opened and counts down."""

    kernels = notice = ""
    restarts = 0
    max_model_len = 100

    def __init__(
        self, id: str, *, ours: bool = True, ready: bool = True, refuses: int = 0, zone: str = "local"
    ) -> None:
        self.id, self.ours, self.ready, self.refuses = id, ours, ready, refuses
        self.node = Node(name=id, zone=zone)
        self.changed: Callable[[], None] = lambda: None
        self.asked: list[GenerationRequest] = []
        self.warmed: list[str] = []  # adapters
        self.forgot: list[str] = []
        self._receivers: dict[str, Receiver] = {}

    @property
    def in_flight(self) -> int:
        return len(self._receivers)

    def keep_books(self, books: Books) -> None: ...

    def unfit(self, request: GenerationRequest) -> str | None:
        return None

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        self.asked.append(request)
        self._receivers[request.id] = receiver
        if self.refuses:
            self.refuses -= 1
            self.lose()

    def say(self, *tokens: int, last: bool = False) -> None:
        """To whoever has asked last; one event for each token."""
        name = self.asked[-1].id
        self._receivers[name].events(
            [
                TokenEvent(
                    request_id=name,
                    token_ids=[token],
                    text=str(token),
                    finish_reason="stop" if last and token == tokens[-1] else None,
                )
                for token in tokens
            ]
        )

    def lose(self) -> None:
        """What was asked last."""
        self._receivers.pop(self.asked[-1].id).lost()

    def cancel(self, request_id: str) -> None:
        if (receiver := self._receivers.pop(request_id, None)) is not None:
            receiver.used(RequestUsage(request_id=request_id, outcome="cancelled"), 0)

    def become(self, ready: bool) -> None:
        self.ready = ready
        self.changed()

    async def stats(self) -> EngineStats:
        return EngineStats()

    def warm(self, ref: AdapterRef) -> None:
        self.warmed.append(ref.id)

    def forget(self, adapter_id: str) -> None:
        self.forgot.append(adapter_id)

    async def stop(self) -> None: ...
