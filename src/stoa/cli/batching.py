"""Puts files and batches together for one gateway process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from stoa.batches import Batches, BatchRunner
from stoa.batches.throttle import Throttle
from stoa.batches.work import Work
from stoa.config import Settings
from stoa.engine.stats import EngineStats
from stoa.server.inside import Inside
from stoa.storage.database import Database
from stoa.storage.files import Files
from stoa.storage.objects import open_objects


@dataclass
class Batching:
    files: Files
    batches: Batches
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def work(self, app: ASGIApp, stats: Callable[[], Awaitable[EngineStats]]) -> None:
        """From now on; `app` answers the lines, `stats` are of what runs them."""
        runner = BatchRunner(self.batches, Inside(app), stats)
        self._tasks += [asyncio.create_task(runner.run()), asyncio.create_task(self.files.run())]

    async def stop(self) -> None:
        """Before the engines drain: what runs is given up, what is done is written down, others may go on at once."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def open_batching(settings: Settings, database: Database, in_flight: Callable[[], int]) -> Batching:
    """`in_flight`: requests of everybody that the gateway has at the moment. Raises ConfigError."""
    objects = open_objects(settings.files_url, settings.home_path)
    files = Files(database, objects, settings.max_file_bytes, settings.max_stored_bytes)
    throttle = Throttle(max_queue=settings.max_queue, in_flight_of_all=in_flight)
    return Batching(files, Batches(database, files, work=Work(throttle=throttle)))
