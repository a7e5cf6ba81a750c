"""From parsed requests to streams of events, with the first one at hand before an answer begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from stoa.engine.request import TokenEvent, TokenLogprob
from stoa.errors import EngineUnavailable
from stoa.server.metrics import Metrics
from stoa.server.problems import event_error
from stoa.server.service import Replica, Ticket
from stoa.server.wire import close


@dataclass
class Usage:
    """Tokens of one HTTP request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Piece:
    """What one choice got in one batch."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Generation:
    """The running requests behind one HTTP request: one for each prompt, `n` choices each.

    Choices are numbered through: choice j of prompt i is i * n + j. Iterate to get lists of pieces, at most
    one for a choice; errors of the engine are raised. Close in any case: that cancels what still runs.
    """

    def __init__(self, replica: Replica, ticket: Ticket, metrics: Metrics) -> None:
        requests = ticket.requests
        self.ticket = ticket
        self.usage = Usage(prompt_tokens=sum(len(r.prompt_token_ids) for r in requests))
        self.n = requests[0].n
        self._offsets = {r.id: i * r.n for i, r in enumerate(requests)}
        self._open = self.n * len(requests)  # choices that have not finished
        self._events = _merged([replica.generate(r) for r in requests])
        self._metrics = metrics
        self._started = self._last = time.perf_counter()
        self._first_token = False
        self._ahead: list[Piece] | None = None

    async def start(self) -> None:
        """Waits for the first batch, so that errors before it still have an HTTP status."""
        try:
            self._ahead = await self._next()
        except BaseException:
            await self.close()
            raise

    def __aiter__(self) -> AsyncIterator[list[Piece]]:
        return self

    async def __anext__(self) -> list[Piece]:
        if self._ahead is not None:
            pieces, self._ahead = self._ahead, None
            return pieces
        if not self._open:
            raise StopAsyncIteration
        return await self._next()

    async def close(self) -> None:
        try:
            await close(self._events)
        finally:
            self.ticket.close()

    async def _next(self) -> list[Piece]:
        try:
            events = await anext(self._events)
        except StopAsyncIteration:
            raise EngineUnavailable("the engine ended the stream before the answer was complete") from None
        now = time.perf_counter()
        pieces: dict[int, Piece] = {}
        for event in events:
            if event.finish_reason in ("error", "cancelled"):
                self._metrics.finished(event.finish_reason)
                raise event_error(event)
            index = self._offsets.get(event.request_id, 0) + event.index
            self._add(pieces.setdefault(index, Piece(index)), event)
        self._time(now)
        return list(pieces.values())

    def _add(self, piece: Piece, event: TokenEvent) -> None:
        piece.text += event.text
        piece.token_ids += event.token_ids
        piece.logprobs += event.logprobs or ()
        if event.finish_reason is None:
            return
        piece.finish_reason, piece.stop_reason = event.finish_reason, event.stop_reason
        self.usage.completion_tokens += event.completion_tokens
        if event.index == 0:
            self.usage.cached_tokens += event.cached_tokens
        self._open -= 1
        self._metrics.finished(event.finish_reason)

    def _time(self, now: float) -> None:
        if not self._first_token:
            self._first_token = True
            self._metrics.time_to_first_token.observe(now - self._started)
        else:
            self._metrics.inter_token_latency.observe(now - self._last)
        self._last = now
        if not self._open:
            self._metrics.e2e_latency.observe(now - self._started)


async def collect(generation: Generation, choices: int) -> list[Piece]:
    """All of every choice, as one piece each; closes the generation."""
    found = [Piece(i) for i in range(choices)]
    texts: list[list[str]] = [[] for _ in range(choices)]
    try:
        async for pieces in generation:
            for piece in pieces:
                whole = found[piece.index]
                texts[piece.index].append(piece.text)
                whole.token_ids += piece.token_ids
                whole.logprobs += piece.logprobs
                if piece.finish_reason is not None:
                    whole.finish_reason, whole.stop_reason = piece.finish_reason, piece.stop_reason
    finally:
        await generation.close()
    for whole, parts in zip(found, texts, strict=True):
        whole.text = "".join(parts)
    return found


async def _merged(streams: list[AsyncIterator[list[TokenEvent]]]) -> AsyncIterator[list[TokenEvent]]:
    """Batches of all streams as they come; what has come together is one batch. Closing it closes all."""
    if len(streams) == 1:
        try:
            async for batch in streams[0]:
                yield batch
        finally:
            await close(streams[0])
        return
    queue: asyncio.Queue[list[TokenEvent] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_pump(stream, queue)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            events: list[TokenEvent] = []
            item = await queue.get()
            while True:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    events += item
                if queue.empty():
                    break
                item = queue.get_nowait()
            if events:
                yield events
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    stream: AsyncIterator[list[TokenEvent]], queue: asyncio.Queue[list[TokenEvent] | Exception | None]
) -> None:
    try:
        async for batch in stream:
            queue.put_nowait(batch)
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)
    finally:
        await close(stream)
