"""What a project can do with batches: ask for them, look at them, cancel them."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.batches.batch import Batch, batch_of, enter
from stoa.batches.tables import BatchRow
from stoa.batches.work import Work
from stoa.errors import Conflict, InvalidRequest, NotFound
from stoa.storage.database import Database
from stoa.storage.files import Files
from stoa.storage.scope import EVERY_PROJECT, Scope
from stoa.tenancy.pages import NEWEST, Cut, Page, page
from stoa.tenancy.principal import Principal

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_WINDOW = re.compile(r"([1-9]\d{0,4})(m|h|d)")
_UNIT_S = {"m": 60, "h": 3600, "d": 86400}
_MOST_WINDOW_S = 7 * 86400


@dataclass(frozen=True)
class Batches:
    """`news` is set when there is something for a runner of this process to see; `work` is what that one does. `clock`:
    Unix time."""

    database: Database
    files: Files
    clock: Callable[[], float] = time.time
    news: asyncio.Event = field(default_factory=asyncio.Event)
    work: Work = field(default_factory=Work)

    async def create(
        self,
        principal: Principal,
        *,
        endpoint: str,
        input_file_id: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        output_expires_after_s: int | None = None,
    ) -> Batch:
        """Its lines run as `principal`. Raises InvalidRequest, StorageFull, NotFound, DatabaseUnavailable."""
        project_id = principal.project_id
        assert project_id is not None, "the caller has checked it"
        if endpoint not in ENDPOINTS:
            accepted = ", ".join(ENDPOINTS)
            raise InvalidRequest(
                f"endpoint {endpoint[:100]!r} has no batches; accepted: {accepted}", param="endpoint"
            )
        _check_metadata(metadata or {})
        await self.files.check_room(project_id)
        now = int(self.clock())
        row = BatchRow(
            id=f"batch_{secrets.token_hex(16)}",
            project_id=project_id,
            key_id=principal.key_id,
            endpoint=endpoint,
            input_file_id=await self._input(project_id, input_file_id),
            completion_window=completion_window,
            status="validating",
            labels=None if metadata is None else dict(metadata),
            output_expires_after_s=output_expires_after_s,
            created_at=now,
            expires_at=now + window_s(completion_window),
            **dict.fromkeys(("total", "completed", "failed", "held_until", "term"), 0),
            **dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens"), 0),
        )
        async with self.database.begin(Scope(project_id)) as session:
            session.add(row)
        self.news.set()
        return batch_of(row)

    async def get(self, project_id: str, batch_id: str) -> Batch:
        """Raises NotFound, DatabaseUnavailable."""
        async with self.database.read(Scope(project_id)) as session:
            return batch_of(await _get(session, batch_id))

    async def list(self, project_id: str, cut: Cut = NEWEST) -> Page[Batch]:
        """Raises InvalidRequest, DatabaseUnavailable."""
        async with self.database.read(Scope(project_id)) as session:
            return await page(session, select(BatchRow), batch_of, cut)

    async def counts(self) -> dict[str, int]:
        """Batches of all projects by status; for operators. Raises DatabaseUnavailable."""
        query = select(BatchRow.status, func.count()).group_by(BatchRow.status)
        async with self.database.read(EVERY_PROJECT) as session:
            return dict((await session.execute(query)).all())

    async def cancel(self, project_id: str, batch_id: str) -> Batch:
        """It stops within seconds. Raises NotFound, Conflict if it has ended or is about to, DatabaseUnavailable."""
        async with self.database.begin(Scope(project_id)) as session:
            row = await _get(session, batch_id, changing=True)
            if row.status in ("validating", "in_progress"):
                enter(row, "cancelling", int(self.clock()))
            elif row.status != "cancelling":
                raise Conflict(f"Cannot cancel a batch with status '{row.status}'.")
        self.news.set()
        return batch_of(row)

    async def _input(self, project_id: str, file_id: str) -> str:
        try:
            file = await self.files.get(project_id, file_id)
        except NotFound as error:
            raise NotFound(error.message, param="input_file_id") from None
        if file.purpose != "batch":
            raise InvalidRequest(
                f"the input file's purpose is {file.purpose!r}; upload it with the purpose 'batch'",
                param="input_file_id",
            )
        return file.id


def window_s(window: str) -> int:
    """Of "24h", "30m" or "2d". Raises InvalidRequest."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not 0 < seconds <= _MOST_WINDOW_S:
        raise InvalidRequest(
            "completion_window must be like 24h, 30m or 2d, up to 7d", param="completion_window"
        )
    return seconds


def _check_metadata(metadata: Mapping[str, str]) -> None:
    fits = all(len(key) <= 64 and len(value) <= 512 for key, value in metadata.items())
    if len(metadata) > 16 or not fits:
        raise InvalidRequest(
            "metadata takes up to 16 pairs, with keys of up to 64 and values of up to 512 characters",
            param="metadata",
        )


async def _get(session: AsyncSession, batch_id: str, *, changing: bool = False) -> BatchRow:
    row = await session.get(BatchRow, batch_id, with_for_update=changing or None)
    if row is None:
        raise NotFound(f"No such Batch object: {batch_id[:100]}", param="batch_id")
    return row
