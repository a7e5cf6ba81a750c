"""Sends the lines of one batch, as many at once as there is room for, until each has a result."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, replace

from stoa.batches.batch import Batch
from stoa.batches.lines import Line, cut, read_line
from stoa.batches.pace import Pace, Progress, pace
from stoa.batches.results import Result, result_of
from stoa.batches.sender import Again, Answer, Asked, Sender, again, refused
from stoa.batches.throttle import MOST, Place
from stoa.batches.work import Work
from stoa.engine.request import ServiceClass
from stoa.errors import NotFound, StoaError
from stoa.storage.files import Files, StoredFile
from stoa.tenancy.delegates import Delegates

_MOST_UNWRITTEN = 500  # results that wait for the database before nothing more is sent
_REMEMBER = 0.9  # weight of the past in the latency of a line
_PATIENCE = 4  # ticks, for a place, before it is asked again how urgent the batch is


@dataclass(frozen=True)
class Equipment:
    """What a gateway's batches have in common. `clock`: Unix time; `tick_s`: how often time and limits are looked at."""

    files: Files
    sender: Sender
    delegates: Delegates
    work: Work
    clock: Callable[[], float] = time.time
    tick_s: float = 0.25


@dataclass(frozen=True)
class Sent:
    """A line that has been sent and has no answer yet."""

    line: Line
    service: ServiceClass
    place: Place


class Feed:
    """`results` are taken from here by whoever writes them down. `input_gone`: the file could not be read to its end."""

    def __init__(self, batch: Batch, input_file: StoredFile, done: Collection[int], tools: Equipment) -> None:
        """`done`: numbers of lines that have a result."""
        self.results: list[Result] = []
        self.input_gone = False
        self._batch, self._file, self._done, self._tools = batch, input_file, done, tools
        self._todo = batch.total - len(done)
        self._again: deque[Line] = deque()
        self._sending: dict[asyncio.Task[None], Sent] = {}
        self._changed = asyncio.Event()
        self._width = float(MOST)  # what the project's limits seem to let through at once
        self._resume_at = 0.0
        self._latency_s = 1.0

    async def run(self) -> None:
        """Until every line has a result. Raises StorageUnavailable."""
        try:
            async with asyncio.TaskGroup() as group, aclosing(self._lines()) as lines:
                async for line in lines:
                    service, place = await self._place()
                    task = group.create_task(self._send(line, service))
                    self._sending[task] = Sent(line, service, place)
                    task.add_done_callback(self._sent)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    # -- what is next

    async def _lines(self) -> AsyncGenerator[Line, None]:
        """Those that must be sent again come first."""
        try:
            async with (
                aclosing(self._tools.files.content(self._file)) as chunks,
                aclosing(cut(chunks)) as cuts,
            ):
                async for some in cuts:
                    for raw in some:
                        while self._again:
                            yield self._again.popleft()
                        if raw.number not in self._done:
                            yield read_line(raw, self._batch.endpoint)[0]
        except NotFound:
            self.input_gone = True
        while self._again or self._sending:
            if self._again:
                yield self._again.popleft()
            else:
                await self._change()
                self._hurry()

    def _hurry(self) -> None:
        """With nothing else left to send, an urgent batch does not wait for what it has sent to fill idle time."""
        if self._pace().service_class == "interactive":
            for task in self._sent_as("batch"):
                self._again.append(self._sending[task].line)
                task.cancel()

    def _sent_as(self, service: ServiceClass) -> list[asyncio.Task[None]]:
        """Those that still run."""
        mine = [task for task, sent in self._sending.items() if sent.service == service]
        return [task for task in mine if not task.done() and not task.cancelling()]

    async def _place(self) -> tuple[ServiceClass, Place]:
        """Waits until one more may be sent; as what."""
        while True:
            if self._may_send():
                now = self._pace()
                urgent = len(self._sent_as("interactive")) < now.least
                try:
                    async with asyncio.timeout(_PATIENCE * self._tools.tick_s):
                        throttle = self._tools.work.throttle
                        return now.service_class, await throttle.enter(self._batch.project_id, urgent=urgent)
                except TimeoutError:
                    continue
            await self._change()

    def _may_send(self) -> bool:
        paused = self._tools.clock() < self._resume_at
        return not paused and len(self._sending) < self._width and len(self.results) < _MOST_UNWRITTEN

    def _pace(self) -> Pace:
        batch = self._batch
        return pace(
            Progress(
                total=batch.total,
                todo=self._todo,
                began_s=batch.created_at,
                ends_s=batch.expires_at,
                now_s=self._tools.clock(),
                latency_s=self._latency_s,
            )
        )

    async def _change(self) -> None:
        """Until something has changed, or might have."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._tools.tick_s):
                await self._changed.wait()
        self._changed.clear()

    # -- one line

    async def _send(self, line: Line, service: ServiceClass) -> None:
        request_id = f"req_{secrets.token_hex(16)}"
        began = self._tools.clock()
        answer = await self._answer(line, request_id, service)
        verdict = again(answer, line.tries)
        if verdict is not None:
            self._wait(verdict)
            self._again.append(replace(line, tries=line.tries + 1))
            return
        self._todo -= 1
        self._width = min(float(MOST), self._width + 1 / self._width)
        took_s = max(0.0, self._tools.clock() - began)
        self._latency_s = _REMEMBER * self._latency_s + (1 - _REMEMBER) * took_s
        self.results.append(result_of(line.number, line.custom_id, request_id, answer))

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._tools.work.throttle.leave(self._sending.pop(task).place)
        self._changed.set()

    async def _answer(self, line: Line, request_id: str, service: ServiceClass) -> Answer:
        batch, tools = self._batch, self._tools
        try:
            principal = await tools.delegates.principal(batch.project_id, batch.key_id)
        except StoaError as error:
            return refused(error)
        return await tools.sender.send(
            Asked(principal, batch.endpoint, line.body, request_id, service, batch.id)
        )

    def _wait(self, verdict: Again) -> None:
        now = self._tools.clock()
        if verdict.full == "engine":
            self._tools.work.throttle.back_off()
        elif now >= self._resume_at:  # once for all that were refused together
            self._width = max(1.0, min(self._width, len(self._sending)) / 2)
        self._resume_at = max(self._resume_at, now + verdict.after_s)
