"""When each key was last used: noted at once, written together, for each key once a minute at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from sqlalchemy import or_, update

from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy import tables

EVERY_S = 60.0
_MOST = 10_000
log = structlog.get_logger()


class Uses:
    def __init__(self, database: Database, *, clock: Callable[[], float], wait_s: float) -> None:
        """`wait_s`: how long a use waits for others to be written with it."""
        self._database, self._clock, self._wait_s = database, clock, wait_s
        self._noted: dict[str, int] = {}  # key → Unix seconds, not written yet
        self._written: dict[str, float] = {}  # key → when it was written last
        self._writing: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        now = self._clock()
        if now - self._written.get(key_id, float("-inf")) < EVERY_S:
            return
        if len(self._noted) < _MOST or key_id in self._noted:
            self._noted[key_id] = int(now)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later())

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.write()

    async def _write_later(self) -> None:
        await asyncio.sleep(self._wait_s)
        await self.write()

    async def write(self) -> None:
        """What cannot be written now is kept for the next time."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        row = tables.ApiKey
        try:
            async with self._database.begin(EVERY_PROJECT) as session:
                for key_id, used_at in sorted(noted.items()):  # in one order, so that writers do not deadlock
                    earlier = or_(row.last_used_at.is_(None), row.last_used_at < used_at)
                    change = update(row).where(row.id == key_id, earlier).values(last_used_at=used_at)
                    await session.execute(change.execution_options(synchronize_session=False))
        except asyncio.CancelledError:
            self._noted = {**noted, **self._noted}
            raise
        except DatabaseUnavailable:
            self._noted = {**noted, **self._noted}
            return
        except Exception:
            log.exception("writing the last uses of keys failed")
            return
        now = self._clock()
        self._written = {k: t for k, t in self._written.items() if now - t < EVERY_S}
        self._written.update(dict.fromkeys(noted, now))
