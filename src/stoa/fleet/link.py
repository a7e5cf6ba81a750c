"""A connection to an engine process, seen from the gateway."""

from __future__ import annotations

import asyncio
import time

import structlog

from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval
from stoa.errors import EngineUnavailable
from stoa.fleet.books import NodeBooks
from stoa.fleet.replica import Receiver
from stoa.fleet.wire import (
    Cancel,
    Drain,
    Events,
    Forget,
    FromEngine,
    GetStats,
    Hello,
    KeepBooks,
    Ping,
    Pong,
    ToEngine,
    Usages,
    Warm,
    frame,
    read_from_engine,
)

log = structlog.get_logger("stoa.fleet")
_BEAT_S = 1.0


class EngineLink:
    """Requests sent here end here: used, or lost with the connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: Hello, books: NodeBooks
    ) -> None:
        self.hello = hello
        self._reader, self._writer, self._books = reader, writer, books
        self._receivers: dict[str, Receiver] = {}
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._kept: KeepBooks | None = None  # we keep its books
        self._heard_s = self._turned_s = time.monotonic()
        self.turns = -1  # of its loop, as far as it has told: changes while the engine looks for work

    @classmethod
    async def greet(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, books: NodeBooks
    ) -> EngineLink:
        """Raises EngineUnavailable if no engine answers."""
        try:
            hello = await read_from_engine(reader)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            writer.close()
            raise EngineUnavailable(f"no engine answers there: {error}") from None
        except BaseException:
            writer.close()
            raise
        assert isinstance(hello, Hello)
        return cls(reader, writer, hello, books)

    def keep_books(self, books: NodeBooks) -> None:
        """Others than so far."""
        self._books = books
        if self._kept is not None:
            books.started(self._kept.started_ns, self._kept.pool_bytes)

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        self._receivers[request.id] = receiver
        self._send(request)

    def cancel(self, request_id: str) -> None:
        if request_id in self._receivers:
            self._send(Cancel(request_id))

    def cancel_all(self) -> None:
        """So that the engine tells what they have used."""
        for request_id in self._receivers:
            self._send(Cancel(request_id))

    def drain(self) -> None:
        self._send(Drain())

    def warm(self, ref: AdapterRef) -> None:
        self._send(Warm(ref))

    def forget(self, adapter_id: str) -> None:
        self._send(Forget(adapter_id))

    def stats(self) -> asyncio.Future[EngineStats]:
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(GetStats())
        return waiter

    async def watch(self, stall_s: float, silence_s: float) -> None:
        """Reads until the connection ends, the process has been silent for `silence_s`, or its engine has not looked for
        work for `stall_s`. Then everything open here is lost."""
        reading = asyncio.ensure_future(self._read())
        try:
            while not reading.done():
                self._send(Ping())
                await asyncio.wait({reading}, timeout=min(_BEAT_S, silence_s / 3, stall_s / 3))
                now = time.monotonic()
                if now - self._heard_s > silence_s:
                    log.error("an engine process is silent", pid=self.hello.pid, seconds=silence_s)
                    break
                if now - self._turned_s > stall_s:
                    log.error("an engine does not go on", pid=self.hello.pid, seconds=stall_s)
                    break
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._lose()

    def closed(self, now_ns: int) -> None:
        """Nothing more comes from that engine for this gateway's books; see `NodeBooks.ended`."""
        if self._kept is not None:
            self._kept = None
            self._books.ended(now_ns)

    # -- inside

    def _send(self, message: ToEngine) -> None:
        if not self._writer.is_closing():  # else the engine is gone, as the watcher is about to see
            self._writer.write(frame(message))

    async def _read(self) -> None:
        while True:
            try:
                message = await read_from_engine(self._reader)
            except (asyncio.IncompleteReadError, ConnectionError, OSError):
                return
            self._heard_s = time.monotonic()
            self._take(message)

    def _take(self, message: FromEngine) -> None:
        match message:
            case Events():
                self._turned_s = self._heard_s
                self._hand_on(message.events)
            case Usages():
                for usage in message.usages:
                    if (receiver := self._receivers.pop(usage.request_id, None)) is not None:
                        receiver.used(usage, self._books.cost_nanos(usage))
            case Pong():
                if message.turns != self.turns:
                    self.turns, self._turned_s = message.turns, self._heard_s
            case Interval():
                self._books.interval(message)
            case KeepBooks():
                self._kept = message
                self._books.started(message.started_ns, message.pool_bytes)
            case EngineStats():
                waiter = self._stats_waiters.pop(0)
                if not waiter.done():
                    waiter.set_result(message)

    def _hand_on(self, events: list[TokenEvent]) -> None:
        by_request: dict[str, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, mine in by_request.items():
            if (receiver := self._receivers.get(request_id)) is not None:
                receiver.events(mine)

    def _lose(self) -> None:
        self._writer.close()
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(EngineUnavailable("the engine stopped"))
                waiter.exception()  # nobody need ask
        self._stats_waiters.clear()
        receivers, self._receivers = self._receivers, {}
        for receiver in receivers.values():
            receiver.lost()
