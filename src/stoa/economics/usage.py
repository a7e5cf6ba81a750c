"""Usage records on their way to the database: never waited for, never written twice, never dropped.

    add ─▶ memory ─▶ database          in batches, by one task
             └────▶ spill folder       when there are too many, or at the end, and the database does not answer
                       └─▶ database    as soon as it answers, or at the next start

A record is known by its request id: inserting one that is there does nothing, so every step may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.records import UsageRecord
from stoa.economics.spill import list_spills, read_spill, write_spill
from stoa.economics.tables import UsageRow
from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, Scope

log = structlog.get_logger("stoa.usage")
_BATCH = 1000  # rows of one transaction: other writers wait a few milliseconds for it
_SLOWEST_RETRY_S = 5.0


class UsageWriter:
    """`start`, then `add` from the event loop's thread, then `close`."""

    def __init__(
        self, database: Database, spill: Path, *, flush_s: float = 0.25, max_pending: int = 100_000
    ) -> None:
        """`spill`: a folder. Beyond `max_pending` records in memory they go there, if the disk takes them."""
        self._database = database
        self._spill = spill
        self._flush_s = flush_s
        self._max_pending = max_pending
        self._pending: deque[UsageRecord] = deque()
        self._turn = asyncio.Lock()  # held while records move
        self._full = asyncio.Event()  # a batch is ready: don't wait for the clock
        self._task: asyncio.Task[None] | None = None
        self._spilled = False
        self.healthy = True

    @property
    def pending(self) -> int:
        """Records that are in memory only."""
        return len(self._pending)

    async def start(self) -> None:
        """Replays what an earlier process has left, if the database answers, and starts writing."""
        self._spilled = bool(list_spills(self._spill))
        await self.flush()
        self._task = asyncio.create_task(self._run(), name="usage writer")

    def add(self, record: UsageRecord) -> None:
        self._pending.append(record)
        if len(self._pending) >= _BATCH:
            self._full.set()

    async def close(self, patience_s: float = 10.0) -> None:
        """Writes the rest to the database, or else to the spill folder. While neither takes them it tries again,
        for `patience_s`; then logs how many there are and raises DatabaseUnavailable. They are still here for
        another `close`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        await self._stop(patience_s)
        while not (await self._flush_within(patience_s) or await self._save()):
            if loop.time() >= deadline:
                log.critical("usage records are lost if this process ends now", count=len(self._pending))
                raise DatabaseUnavailable(
                    f"{len(self._pending)} usage records fit neither into the database nor into {self._spill}"
                )
            await asyncio.sleep(min(0.5, patience_s))

    async def _stop(self, patience_s: float) -> None:
        """Ends the task, not in the middle of a transaction unless the database hangs."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s), self._turn:
                self._task.cancel()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    async def _flush_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(max(limit_s, 0.1)):
                return await self.flush()
        except TimeoutError:
            return False

    async def spent(self, project_id: str, since_s: int) -> int:
        """Nano-dollars of the project's requests since then, those included that are still in memory. Raises
        DatabaseUnavailable."""
        total = select(func.coalesce(func.sum(UsageRow.cost_nanos), 0)).where(
            UsageRow.project_id == project_id, UsageRow.created_at_s >= since_s
        )
        async with self._turn:
            async with self._database.read(Scope(project_id)) as session:
                written = int((await session.execute(total)).scalar_one())
            return written + sum(
                r.cost_nanos
                for r in self._pending
                if r.project_id == project_id and r.created_at_s >= since_s
            )

    async def _run(self) -> None:
        retry_s = self._flush_s
        while True:
            if await self.flush():
                retry_s = self._flush_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._flush_s)
                continue
            if len(self._pending) > self._max_pending:
                await self._save()
            retry_s = min(retry_s * 2, _SLOWEST_RETRY_S)
            await asyncio.sleep(retry_s)

    async def flush(self) -> bool:
        """Memory, then files, to the database; False if it does not take them."""
        async with self._turn:
            try:
                while self._pending:
                    batch = list(islice(self._pending, _BATCH))
                    await self._write(batch)
                    for _ in batch:
                        self._pending.popleft()
                if self._spilled:
                    await self._replay()
            except DatabaseUnavailable:
                self.healthy = False
                return False
            except Exception:
                log.exception("usage records cannot be written; trying again", pending=len(self._pending))
                self.healthy = False
                return False
            self._full.clear()
            self.healthy = True
            return True

    async def _write(self, records: Sequence[UsageRecord]) -> None:
        """Those that are not there yet. What the database refuses on its own is put aside, so that it cannot hold
        up the rest."""
        try:
            async with self._database.begin(EVERY_PROJECT) as session:
                await insert_new(session, self._database.is_sqlite, records)
        except (DBAPIError, OverflowError, UnicodeError) as error:
            if not _is_refusal(error):
                raise
            if len(records) > 1:
                half = len(records) // 2
                await self._write(records[:half])
                await self._write(records[half:])
                return
            path = await asyncio.to_thread(write_spill, self._spill / "refused", records)
            log.error("the database refuses a usage record", path=str(path), error=str(error))

    async def _replay(self) -> None:
        for path in await asyncio.to_thread(list_spills, self._spill):
            records = await asyncio.to_thread(read_spill, path)
            for start in range(0, len(records), _BATCH):
                await self._write(records[start : start + _BATCH])
            path.unlink(missing_ok=True)
            if records:
                log.info("usage records replayed", count=len(records), path=str(path))
        self._spilled = False

    async def _save(self) -> bool:
        """Memory to a file. A full disk changes nothing: False."""
        async with self._turn:
            records = list(self._pending)
            if not records:
                return True
            try:
                path = await asyncio.to_thread(write_spill, self._spill, records)
            except OSError as error:
                log.error("usage records cannot be spilled", folder=str(self._spill), error=str(error))
                return False
            for _ in records:
                self._pending.popleft()
            self._spilled = True
            log.warning("usage records spilled", count=len(records), path=str(path))
            return True


async def insert_new(session: AsyncSession, is_sqlite: bool, records: Sequence[UsageRecord]) -> None:
    """INSERT … ON CONFLICT DO NOTHING, on either database."""
    insert: Any = sqlite.insert if is_sqlite else postgresql.insert
    rows = [msgspec.structs.asdict(record) for record in records]
    await session.execute(insert(UsageRow.__table__).on_conflict_do_nothing(), rows)


def _is_refusal(error: Exception) -> bool:
    """The values are at fault, not the database: SQLSTATE classes 22 (data) and 23 (constraints)."""
    if isinstance(error, (DataError, IntegrityError, OverflowError, UnicodeError)):
        return True
    cause = getattr(error, "orig", None)
    if isinstance(getattr(cause, "__cause__", None), ValueError):
        return True  # asyncpg found that it does not fit its column
    return str(getattr(cause, "sqlstate", None) or "")[:2] in ("22", "23")
