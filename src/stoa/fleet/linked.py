"""Replicas that are engine processes: what those here and those elsewhere have in common, and those elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from stoa.economics.node import Node
from stoa.engine.request import AdapterRef, GenerationRequest
from stoa.engine.stats import EngineStats
from stoa.errors import EngineUnavailable
from stoa.fleet.books import Books, NoBooks
from stoa.fleet.link import EngineLink
from stoa.fleet.replica import Receiver
from stoa.fleet.wire import Login, frame
from stoa.fleet.worker import LINK_LIMIT_BYTES

log = structlog.get_logger("stoa.fleet")
_CONNECT_S = 5.0
_MAX_PAUSE_S = 5.0


class LinkedReplica:
    """Implements `Replica` but for `stop`, by the link that it has at the moment."""

    ours = True

    def __init__(self, id: str, node: Node) -> None:
        self.id = id
        self.node = node
        self.books: Books = NoBooks()
        self.link: EngineLink | None = None
        self.restarts = 0
        self.max_model_len = 0
        self.kernels = ""
        self.notice = ""
        self.changed: Callable[[], None] = lambda: None  # told when `ready` has changed

    @property
    def ready(self) -> bool:
        return self.link is not None

    @property
    def turns(self) -> int:
        """Changes while its engine looks for work, also while it is idle."""
        return self.link.turns if self.link is not None else -1

    def keep_books(self, books: Books) -> None:
        self.books = books
        if self.link is not None:
            self.link.keep_books(books.node(self.node))

    def unfit(self, request: GenerationRequest) -> str | None:
        return None

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        if self.link is None:
            receiver.lost()
        else:
            if request.source:
                request = msgspec.structs.replace(request, source=b"")
            self.link.open(request, receiver)

    def cancel(self, request_id: str) -> None:
        if self.link is not None:
            self.link.cancel(request_id)

    async def stats(self) -> EngineStats:
        if self.link is None:
            raise EngineUnavailable("the engine is not up")
        return await self.link.stats()

    def warm(self, ref: AdapterRef) -> None:
        if self.link is not None:
            self.link.warm(ref)

    def forget(self, adapter_id: str) -> None:
        if self.link is not None:
            self.link.forget(adapter_id)

    def _linked(self, link: EngineLink) -> None:
        hello = link.hello
        self.kernels, self.notice, self.max_model_len = hello.kernels, hello.notice, hello.max_model_len
        self.link = link
        self.changed()

    async def _watch_link(self, link: EngineLink, stall_s: float, silence_s: float) -> None:
        """Until the link has ended."""
        try:
            await link.watch(stall_s, silence_s)
        finally:
            self.link = None
            self.changed()


class DistantReplica(LinkedReplica):
    """An engine process that listens somewhere (`worker --listen`). Somebody else starts and ends it; when the
    connection breaks, it is made again."""

    def __init__(
        self,
        id: str,
        node: Node,
        address: str,
        token: str,
        *,
        stall_s: float = 60.0,
        silence_s: float = 5.0,
    ) -> None:
        """`address`: HOST:PORT. `silence_s`: without a word from the process, before its requests go elsewhere."""
        super().__init__(id, node)
        self._address, self._token = address, token
        self._stall_s, self._silence_s = stall_s, silence_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Goes on connecting until stopped."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self.link is not None:
            self.link.cancel_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s, was_there = 0.05, False
        while True:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    link = await self._connect()
            except (OSError, EngineUnavailable, TimeoutError) as error:
                if was_there:  # most likely it has ended, and the controller is about to say so
                    log.debug("a replica does not answer any more", replica=self.id, error=str(error))
                else:
                    log.info("a replica does not answer yet", replica=self.id, error=str(error))
            else:
                pause_s, was_there = 0.05, True
                self._linked(link)
                try:
                    await self._watch_link(link, self._stall_s, self._silence_s)
                finally:
                    link.closed(0)
                self.restarts += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _connect(self) -> EngineLink:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=LINK_LIMIT_BYTES)
        writer.write(frame(Login(self._token)))
        return await EngineLink.greet(reader, writer, self.books.node(self.node))
