"""A replica: one engine process, started, watched, restarted and drained.

A request is known here until its last event has been handed on. If the engine dies, requests that had not
produced anything are sent to its successor; the others end with `EngineUnavailable`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stoa import errors
from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval
from stoa.errors import EngineUnavailable, QueueFull, StoaError
from stoa.fleet.books import Books, NoBooks
from stoa.fleet.wire import (
    Cancel,
    Drain,
    Events,
    Forget,
    GetStats,
    Hello,
    ToEngine,
    Usages,
    Warm,
    frame,
    read_from_engine,
)
from stoa.fleet.worker import DEFAULT_FACTORY, STARTUP_ERROR

log = structlog.get_logger()
_STDERR_LINES = 40
_MAX_BACKOFF_S = 10.0
_MAX_REPLAYS = 1  # a request that ends one engine after the other must not go on
_BEAT_S = 10.0


@dataclass
class _Live:
    """A request in flight and the queue its consumer reads. None on the queue: the engine is gone."""

    request: GenerationRequest
    queue: asyncio.Queue[list[TokenEvent] | None] = field(default_factory=asyncio.Queue)
    produced: bool = False
    replays: int = 0  # engines that died with it
    tokens: int = 0  # handed on
    settled: bool = False  # the books know its end


class LocalReplica:
    """An engine in a process of its own on this machine."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_queue: int = 1024,
        factory: str = DEFAULT_FACTORY,
        start_s: float = 600.0,
        stall_s: float = 300.0,
        books: Books | None = None,
    ) -> None:
        """`start_s`: how long an engine may take to start; `stall_s`: to answer, before another replaces it."""
        self.books: Books = books or NoBooks()
        self.config = config
        self.max_queue = max_queue
        self.factory = factory
        self.start_s = start_s
        self.stall_s = stall_s
        self.ready = False
        self.spawned = asyncio.Event()  # the process exists, though it may not be ready
        self.restarts = 0
        self.max_model_len = 0
        self.kernels = ""
        self.notice = ""
        self._live: dict[str, _Live] = {}
        self._sent: dict[str, _Live] = {}  # to this engine, which has not told yet what they used
        self._draining = False
        self._hurried = False
        self._stopped = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heard_s = 0.0
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._folder = tempfile.TemporaryDirectory(prefix="stoa-")  # mode 0700
        self._watcher: asyncio.Task[None] | None = None
        self._ended: collections.deque[float] = collections.deque(maxlen=64)  # when requests ended lately

    def keep_books(self, books: Books) -> None:
        """From now on `books` is told; of an engine that is up already, that it has started."""
        self.books = books
        if self._writer is not None:
            books.engine_started(self._hello.started_ns, self._hello.pool_bytes)

    @property
    def in_flight(self) -> int:
        return len(self._live)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the engine and waits until it is ready. Raises what the engine said if it cannot start."""
        reader = await self._spawn()
        self._watcher = asyncio.create_task(self._watch(reader))

    async def stop(self, drain_s: float = 30.0) -> None:
        """Refuses new requests, lets running ones finish for up to `drain_s`, then ends the process."""
        self._draining = True
        self.ready = False
        deadline = time.monotonic() + drain_s
        while self._live and not self._hurried and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._stopped = True
        if self._writer is not None:
            for request_id in self._sent:  # so that the engine tells what they have used
                self._send(Cancel(request_id))
            self._send(Drain())
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), 2.0)
        await self._kill()
        if self._watcher is not None:
            await self._watcher
        self._folder.cleanup()

    def hurry(self) -> None:
        """A `stop` under way waits no longer."""
        self._hurried = True

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenEvent]]:
        """Events of the request until each of its choices has ended. Closing the generator cancels it.

        Raises QueueFull, and EngineUnavailable if the engine dies after the first event.
        """
        self._admit(request)
        live = self._live[request.id] = _Live(request)
        self.books.begun(request.id)
        left = request.n
        try:
            if self._writer is not None:
                self._submit(live)
            while left:
                events = await live.queue.get()
                if events is None:
                    raise EngineUnavailable(
                        "the engine stopped while this request was running; send it again"
                    )
                live.produced = True
                left -= sum(e.finish_reason is not None for e in events)
                if any(e.finish_reason == "error" for e in events):
                    left = 0
                yield events
        finally:
            del self._live[request.id]
            self._ended.append(time.monotonic())
            if left and self._writer is not None:
                self._send(Cancel(request.id))
            if request.id not in self._sent and not live.settled:
                live.settled = True
                self.books.lost(request.id, live.tokens)

    async def stats(self) -> EngineStats:
        """Raises EngineUnavailable when the engine is not up."""
        if self._writer is None:
            raise EngineUnavailable("the engine is not up")
        return await self._ask_stats()

    def _ask_stats(self) -> asyncio.Future[EngineStats]:
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(GetStats())
        return waiter

    async def warm(self, ref: AdapterRef) -> None:
        if self._writer is not None:
            self._send(Warm(ref))

    async def forget(self, adapter_id: str) -> None:
        if self._writer is not None:
            self._send(Forget(adapter_id))

    # -- admission

    def _admit(self, request: GenerationRequest) -> None:
        if self._draining:
            raise EngineUnavailable("the service is shutting down")
        if request.id in self._live:
            raise errors.InvalidRequest(f"request id {request.id!r} is in use", param="id")
        if len(self._live) >= self.max_queue:
            raise QueueFull(
                f"{len(self._live)} requests are in flight, the limit is {self.max_queue}; try again later",
                retry_after_s=self._retry_after_s(),
            )

    def _retry_after_s(self) -> int:
        """When a place should be free, from how fast requests ended lately."""
        if len(self._ended) < 2:
            return 1
        per_request = (time.monotonic() - self._ended[0]) / len(self._ended)
        return max(1, min(60, math.ceil(per_request)))

    def _submit(self, live: _Live) -> None:
        self._sent[live.request.id] = live
        self._send(live.request)

    def _send(self, message: ToEngine) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():  # else the engine is gone, as the watcher is about to see
            self._writer.write(frame(message))

    # -- the process

    async def _spawn(self) -> asyncio.StreamReader:
        path = str(Path(self._folder.name) / f"engine-{self.restarts}.sock")
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set_result((reader, writer))

        listener = await asyncio.start_unix_server(accept, path, limit=1 << 20)
        self._stderr.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stoa.fleet.worker", "--socket", path, "--factory", self.factory,
            "--config", msgspec.json.encode(self.config).decode(), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.spawned.set()
        echo = asyncio.create_task(self._echo_stderr(self._process))
        exited = asyncio.create_task(self._process.wait())
        try:
            pair: set[asyncio.Future[Any]] = {connected, exited}
            await asyncio.wait(pair, timeout=self.start_s, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                await self._kill()
                await echo
                raise self._start_error()
            reader, writer = connected.result()
            try:
                hello = await read_from_engine(reader)
            except BaseException:
                writer.close()
                raise
            assert isinstance(hello, Hello)
        finally:
            exited.cancel()
            listener.close()
        self.kernels, self.notice, self.max_model_len = hello.kernels, hello.notice, hello.max_model_len
        self._writer = writer
        self._hello = hello
        self.books.engine_started(hello.started_ns, hello.pool_bytes)
        for live in self._live.values():
            if not live.settled:
                self._submit(live)
        self.ready = not self._draining
        return reader

    async def _echo_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace")
            self._stderr.append(line)
            if not line.startswith(STARTUP_ERROR):
                sys.stderr.write(line)

    def _start_error(self) -> StoaError:
        for line in self._stderr:
            if line.startswith(STARTUP_ERROR):
                facts = json.loads(line.removeprefix(STARTUP_ERROR))
                return getattr(errors, facts["class"])(facts["message"], param=facts["param"])  # type: ignore[no-any-return]
        return EngineUnavailable("the engine did not start:\n" + "".join(self._stderr))

    async def _watch(self, reader: asyncio.StreamReader | None) -> None:
        """Reads events; when the engine dies, starts another, with growing pauses."""
        pause_s = 0.1
        while True:
            if reader is not None:
                began = time.monotonic()
                await self._read_while_alive(reader)
                pause_s = 0.1 if time.monotonic() - began > 30 else min(2 * pause_s, _MAX_BACKOFF_S)
            self._lost()
            await self._kill()
            if self._stopped:
                return
            self.restarts += 1
            status = self._process.returncode if self._process else None
            log.error("the engine stopped; starting another", status=status, restarts=self.restarts)
            await asyncio.sleep(pause_s)
            try:
                reader = await self._spawn()
            except (StoaError, OSError, asyncio.IncompleteReadError) as error:
                log.error("the engine did not start again", error=str(error))
                reader, pause_s = None, min(2 * pause_s, _MAX_BACKOFF_S)

    async def _read_while_alive(self, reader: asyncio.StreamReader) -> None:
        """Returns when the connection ends, or the engine has not answered for `stall_s`."""
        reading = asyncio.ensure_future(self._read(reader))
        self._heard_s = time.monotonic()
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=min(_BEAT_S, self.stall_s / 2))
                if time.monotonic() - self._heard_s > self.stall_s:
                    log.error("the engine does not answer", seconds=self.stall_s)
                    return
                if not self._stats_waiters and self._writer is not None:
                    self._ask_stats().add_done_callback(asyncio.Future.exception)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message = await read_from_engine(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            self._heard_s = time.monotonic()
            if isinstance(message, Events):
                self._hand_on(message.events)
            elif isinstance(message, Usages):
                for usage in message.usages:
                    self._sent.pop(usage.request_id).settled = True
                    self.books.used(usage)
            elif isinstance(message, Interval):
                self.books.interval(message)
            elif isinstance(message, EngineStats):
                waiter = self._stats_waiters.pop(0)
                if not waiter.done():
                    waiter.set_result(message)

    def _hand_on(self, events: list[TokenEvent]) -> None:
        by_request: dict[str, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, mine in by_request.items():
            live = self._live.get(request_id)
            if live is not None:
                live.produced = True
                live.tokens += sum(len(event.token_ids) for event in mine)
                live.queue.put_nowait(mine)

    def _lost(self) -> None:
        """The connection is gone: what had produced something ends, the rest waits for the next engine."""
        self.ready = False
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self.books.engine_lost(0 if self._stopped else time.time_ns())
        sent, self._sent = self._sent, {}
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(EngineUnavailable("the engine stopped"))
        self._stats_waiters.clear()
        for live in self._live.values():
            if live.produced or self._stopped or live.replays == _MAX_REPLAYS:
                live.queue.put_nowait(None)
            else:
                live.replays += 1
                sent.pop(live.request.id, None)
        for live in sent.values():
            live.settled = True
            self.books.lost(live.request.id, live.tokens)

    async def _kill(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
