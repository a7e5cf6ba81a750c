"""A sender that needs no server, a database that can die, and a workshop with both."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from stoa.batches import Answer, Asked, Batches, BatchRunner
from stoa.batches.batch import Batch
from stoa.batches.throttle import Throttle
from stoa.batches.work import Work
from stoa.engine.stats import EngineStats
from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database
from stoa.storage.files import Files, StoredFile
from stoa.storage.objects import ObjectStore
from stoa.storage.scope import Scope
from stoa.tenancy.principal import Principal
from tests.tenancy.meters.clock import ManualClock

ENDPOINT = "/v1/chat/completions"
WHO = Principal("default", "default", None, frozenset({"all"}))


def line(custom_id: str, /, **more: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}]}
    asked = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | more
    return json.dumps(asked).encode()


def lines(count: int) -> bytes:
    return b"\n".join(line(f"r{n}") for n in range(count)) + b"\n"


def echo(asked: Asked) -> Answer:
    """What was said, and three and two tokens."""
    said = json.loads(asked.body)["messages"][0]["content"]
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    return Answer(200, json.dumps({"said": said, "usage": usage}).encode())


def refusal(status: int, code: str, retry_after_s: float | None = None) -> Answer:
    return Answer(status, json.dumps({"error": {"message": "no", "code": code}}).encode(), retry_after_s)


async def punctual(for_s: float) -> float:
    """An event loop that is never late, however busy the machine."""
    await asyncio.sleep(for_s)
    return 0.0


@dataclass
class FakeSender:
    """Answers by `answer`, None: never, after `meanwhile`. Notes what it is asked."""

    answer: Callable[[Asked], Answer | None] = echo
    meanwhile: Callable[[], Awaitable[None]] = field(default=lambda: asyncio.sleep(0))
    asked: list[Asked] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def send(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.meanwhile()
            answer = self.answer(asked)
            if answer is None:
                await asyncio.Event().wait()
            assert answer is not None
            return answer
        finally:
            self.running -= 1

    @property
    def said(self) -> Counter[str]:
        return Counter(json.loads(a.body)["messages"][0]["content"] for a in self.asked)


class MortalDatabase(Database):
    """As its process dies after so many transactions: nothing reaches the database any more."""

    left: int | None = None

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        self._live()
        async with super().begin(scope) as session:
            yield session

    @asynccontextmanager
    async def read(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        self._live()
        async with super().read(scope) as session:
            yield session

    @property
    def dead(self) -> bool:
        return self.left == 0

    def _live(self) -> None:
        if self.dead:
            raise DatabaseUnavailable("dead")
        if self.left is not None:
            self.left -= 1


@dataclass
class BrokenObjects:
    """Takes everything, and cannot be read."""

    whole: ObjectStore
    error: Exception

    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        return await self.whole.put(name, chunks)

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        raise self.error
        yield b""

    async def delete(self, name: str) -> None:
        await self.whole.delete(name)


@dataclass
class Workshop:
    """One database and one folder; any number of gateways."""

    url: str
    database: Database
    objects: ObjectStore
    clock: ManualClock
    sender: FakeSender = field(default_factory=FakeSender)
    stats: EngineStats = field(default_factory=EngineStats)
    max_queue: int = 1024
    max_stored_bytes: int = 0

    @property
    def files(self) -> Files:
        return Files(self.database, self.objects, max_stored_bytes=self.max_stored_bytes, clock=self.clock)

    @property
    def batches(self) -> Batches:
        return Batches(self.database, self.files, self.clock)

    async def upload(self, text: bytes, purpose: str = "batch", project_id: str = "default") -> StoredFile:
        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(text), 1000):
                yield text[at : at + 1000]

        async with self.files.arrival(project_id) as arrival:
            await arrival.write(chunks())
            return await arrival.finish("in.jsonl", purpose)

    async def create(self, text: bytes, who: Principal = WHO, **more: Any) -> Batch:
        file = await self.upload(text, project_id=str(who.project_id))
        asked = {"endpoint": ENDPOINT, "completion_window": "24h"} | more
        return await self.batches.create(who, input_file_id=file.id, **asked)

    @asynccontextmanager
    async def gateway(
        self, database: Database | None = None, sender: FakeSender | None = None
    ) -> AsyncIterator[BatchRunner]:
        """A process of its own, as far as the others can tell."""
        mine = database or self.database
        files = Files(mine, self.objects, clock=self.clock)
        runner = BatchRunner(
            Batches(mine, files, self.clock, work=Work(throttle=Throttle(max_queue=self.max_queue))),
            sender or self.sender,
            self._stats,
            look_s=0.02,
            tick_s=0.005,
            late=punctual,
        )
        task = asyncio.ensure_future(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, status: str, batch: Batch, *, pass_s: float = 0.2) -> Batch:
        """While time goes on."""
        await self.eventually(lambda found: found.status == status, batch, pass_s=pass_s)
        return await self.batches.get(batch.project_id, batch.id)

    async def eventually(self, true: Callable[[Batch], bool], batch: Batch, *, pass_s: float = 0.2) -> None:
        async with asyncio.timeout(30):
            while not true(await self.batches.get(batch.project_id, batch.id)):
                self.clock.pass_s(pass_s)
                await asyncio.sleep(0.01)

    async def output(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file; none if there is no file."""
        if file_id is None:
            return []
        file = await self.files.get("default", file_id)
        text = b"".join([piece async for piece in self.files.content(file)])
        assert text.endswith(b"\n")
        assert len(text) == file.size_bytes
        assert file.purpose == "batch_output"
        return [json.loads(each) for each in text.splitlines()]

    async def _stats(self) -> EngineStats:
        return self.stats
