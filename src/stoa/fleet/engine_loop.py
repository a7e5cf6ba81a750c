"""The engine's thread in its process: takes messages of gateways between steps, sends each what is its own."""

from __future__ import annotations

import collections
import math
import threading
from typing import Literal, Protocol

from stoa.engine.accounting import Accounts
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval, RequestUsage
from stoa.errors import InvalidRequest, StoaError
from stoa.fleet.wire import (
    Cancel,
    Drain,
    Events,
    Forget,
    FromEngine,
    GetStats,
    KeepBooks,
    ToEngine,
    Usages,
    Warm,
)

_MOST_UNSENT = 4096  # intervals kept while no gateway is there


class EngineLike(Protocol):
    """What the loop drives. Implemented by `stoa.engine.Engine` and the tests' fake."""

    idle: bool
    wakeup: threading.Event
    max_model_len: int
    accounts: Accounts

    @property
    def has_requests(self) -> bool: ...
    @property
    def kernels_name(self) -> str: ...
    @property
    def notice(self) -> str: ...
    def add_request(self, request: GenerationRequest) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def warm(self, ref: AdapterRef) -> None: ...
    def forget(self, adapter_id: str) -> None: ...
    def step(self) -> list[TokenEvent]: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


class Port(Protocol):
    """A gateway, as the engine's thread sees it."""

    def send(self, message: FromEngine) -> None:
        """From any thread; never waits. What is sent to a gateway that has gone is dropped."""
        ...


class EngineLoop:
    """`post` and `stop` may be called from any thread; `run` is the engine's."""

    def __init__(self, engine: EngineLike) -> None:
        self.engine = engine
        self.draining = False
        self.turns = 0
        self._stopping = False
        self._inbox: collections.deque[tuple[Port, ToEngine | Literal["enter", "leave"]]] = (
            collections.deque()
        )
        self._ports: list[Port] = []  # the first keeps the books
        self._owners: dict[str, Port] = {}  # of requests
        self._unsent: collections.deque[Interval] = collections.deque(maxlen=_MOST_UNSENT)

    def post(self, port: Port, message: ToEngine | Literal["enter", "leave"]) -> None:
        """A message of that gateway, which enters before its first one and leaves after its last."""
        self._inbox.append((port, message))
        self.engine.wakeup.set()

    def drain(self) -> None:
        """Ends once all requests have ended."""
        self.draining = True
        self.engine.wakeup.set()

    def stop(self) -> None:
        """Ends after the step that runs."""
        self._stopping = True
        self.engine.wakeup.set()

    def run(self) -> None:
        """Steps until drained or stopped."""
        engine = self.engine
        while not self._stopping:
            self.turns += 1
            self._take_inbox()
            if engine.has_requests and (events := engine.step()):
                self._hand_out(events)
            self._report()
            if self._inbox:
                continue
            if self.draining and not engine.has_requests:
                break
            if engine.idle or not engine.has_requests:
                engine.wakeup.wait(0.5)
                engine.wakeup.clear()
        self._report(final=True)
        engine.close()

    # -- to gateways

    def _hand_out(self, events: list[TokenEvent]) -> None:
        if len(self._ports) == 1:
            self._ports[0].send(Events(events))
            return
        by_port: dict[Port, list[TokenEvent]] = {}
        for event in events:
            if (owner := self._owners.get(event.request_id)) is not None:
                by_port.setdefault(owner, []).append(event)
        for port, mine in by_port.items():
            port.send(Events(mine))

    def _report(self, *, final: bool = False) -> None:
        by_port: dict[Port, list[RequestUsage]] = {}
        for report in self.engine.accounts.reports(final=final):
            if isinstance(report, Interval):
                self._unsent.append(report)
            elif (owner := self._owners.pop(report.request_id, None)) is not None:
                by_port.setdefault(owner, []).append(report)
        for port, usages in by_port.items():
            port.send(Usages(usages))
        while self._ports and self._unsent:
            self._ports[0].send(self._unsent.popleft())

    # -- from gateways

    def _take_inbox(self) -> None:
        while self._inbox:
            port, message = self._inbox.popleft()
            try:
                self._handle(port, message)
            except StoaError as error:
                assert isinstance(message, GenerationRequest)
                port.send(Events([_refusal(message, error)]))
                port.send(Usages([RequestUsage(request_id=message.id, outcome="error")]))

    def _handle(self, port: Port, message: ToEngine | Literal["enter", "leave"]) -> None:
        engine = self.engine
        match message:
            case GenerationRequest():
                _check(message)
                engine.add_request(message)
                self._owners[message.id] = port
            case Cancel():
                engine.cancel(message.request_id)
            case Warm():
                engine.warm(message.adapter)
            case Forget():
                engine.forget(message.adapter_id)
            case GetStats():
                port.send(engine.stats())
            case Drain():
                self.draining = True
            case "enter":
                self._enter(port)
            case "leave":
                self._leave(port)

    def _enter(self, port: Port) -> None:
        self._ports.append(port)
        if len(self._ports) == 1:
            self._keep_books(port)

    def _leave(self, port: Port) -> None:
        """Nobody reads what its requests would say."""
        for request_id in [r for r, owner in self._owners.items() if owner is port]:
            self.engine.cancel(request_id)
        first = self._ports[0] is port
        self._ports.remove(port)
        if first and self._ports:
            self._keep_books(self._ports[0])

    def _keep_books(self, port: Port) -> None:
        accounts = self.engine.accounts
        started_ns = self._unsent[0].start_ns if self._unsent else accounts.started_ns
        port.send(KeepBooks(started_ns, accounts.pool_bytes))


def _check(request: GenerationRequest) -> None:
    """What the engine reckons with and trusts. Raises InvalidRequest."""
    if not 0 < request.weight < math.inf:
        raise InvalidRequest(f"weight is {request.weight}; accepted: numbers above 0", param="weight")
    if not 0 <= request.waited_s < math.inf:
        raise InvalidRequest(f"waited_s is {request.waited_s}; accepted: seconds", param="waited_s")


def _refusal(request: GenerationRequest, error: StoaError) -> TokenEvent:
    return TokenEvent(
        request_id=request.id,
        finish_reason="error",
        error=error.message,
        error_code=error.code or error.type,
        error_param=error.param,
    )
