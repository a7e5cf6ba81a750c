"""Files of projects: a row in the database, and bytes in an object store.

    arriving ──finish──▶ ready ──delete, or expiry──▶ leaving ──▶ gone
       └───────────── given up, or the process died ────▲

The row comes before the bytes and goes after them, so that whatever is interrupted is found again: `sweep` finishes it.
Only what is ready, and has not expired, is there for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import structlog
from sqlalchemy import BigInteger, String, delete, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql import ColumnElement

from stoa.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    NotFound,
    RequestTooLarge,
    StorageFull,
)
from stoa.storage.base import Base, ProjectOwned
from stoa.storage.carrying import carried_through
from stoa.storage.database import Database
from stoa.storage.objects import ObjectStore, StorageUnavailable
from stoa.storage.scope import EVERY_PROJECT, Scope

GIVEN_UP_S = 86_400  # an arrival that has not ended by then never will
_SWEEP_S = 60.0
_SWEPT_AT_ONCE = 100
_LEAST_STEP_BYTES, _MOST_STEP_BYTES = 1 << 20, 64 << 20  # that an upload takes of its project's room at once
_TOO_LONG = "the upload took too long and was given up"
log = structlog.get_logger()


class FileRow(ProjectOwned, Base):
    """`state`: arriving, ready or leaving. `size_bytes`: of an upload that arrives, the room that it has taken."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger, index=True)


@dataclass(frozen=True)
class StoredFile:
    """Times are Unix seconds."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: int
    expires_at: int | None


@dataclass(frozen=True)
class Files:
    """`max_bytes`: of one file; `max_stored_bytes`: of all files of a project, 0: any number. `clock`: Unix time."""

    database: Database
    objects: ObjectStore
    max_bytes: int = 512 << 20
    max_stored_bytes: int = 0
    clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def arrival(self, project_id: str, file_id: str | None = None) -> AsyncIterator[Arrival]:
        """Takes in a new file: write it, then finish it. What is not finished is deleted.

        `file_id`: of a file that we make ourselves, of any size, also if the project is full; made again, it takes the
        place of what was there.
        Another process may be making the same, so what is not finished is left to `sweep`. Raises DatabaseUnavailable.
        """
        most_bytes = self.max_bytes if file_id is None else None
        arrival = Arrival(self, project_id, file_id or f"file-{secrets.token_hex(12)}", most_bytes)
        async with self.database.begin(Scope(project_id)) as session:
            row = await session.get(FileRow, arrival.id)
            if row is None:
                row = FileRow(project_id=project_id, id=arrival.id, state="arriving", size_bytes=0)
                row.filename = row.purpose = ""
                session.add(row)
            row.created_at = int(self.clock())
        try:
            yield arrival
        finally:
            if not arrival.finished and file_id is None:
                await asyncio.shield(self._give_up(arrival))

    async def get(self, project_id: str, file_id: str) -> StoredFile:
        """Raises NotFound, DatabaseUnavailable."""
        async with self.database.read(Scope(project_id)) as session:
            return _stored(await self._get(session, file_id))

    async def list(
        self,
        project_id: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[StoredFile], bool]:
        """By age, the newest first unless "asc", and whether more follow. Raises InvalidRequest, DatabaseUnavailable."""
        query = select(FileRow).where(*self._visible())
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        key = tuple_(FileRow.created_at, FileRow.id)
        async with self.database.read(Scope(project_id)) as session:
            if after is not None:
                last = await session.get(FileRow, after)
                if last is None:
                    raise InvalidRequest("after names no file", param="after")
                edge = tuple_(last.created_at, last.id)
                query = query.where(key < edge if order == "desc" else key > edge)
            columns = (FileRow.created_at, FileRow.id)
            query = query.order_by(*(c.desc() if order == "desc" else c.asc() for c in columns))
            rows = list(await session.scalars(query.limit(limit + 1)))
        return [_stored(row) for row in rows[:limit]], len(rows) > limit

    def content(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """In pieces; to be closed. Raises NotFound, StorageUnavailable."""
        return self.objects.read(_name(file.project_id, file.id))

    async def delete(self, project_id: str, file_id: str) -> None:
        """With its bytes. Raises NotFound, DatabaseUnavailable."""
        async with self.database.begin(Scope(project_id)) as session:
            row = await self._get(session, file_id)
            row.state = "leaving"
        with contextlib.suppress(StorageUnavailable, DatabaseUnavailable):  # nobody sees it; swept later
            await self._remove(project_id, file_id)

    async def sweep(self) -> int:
        """Removes what has expired, and finishes what was interrupted; returns how many."""
        now = int(self.clock())
        query = select(FileRow.project_id, FileRow.id).where(
            or_(
                FileRow.state == "leaving",
                (FileRow.state == "arriving") & (FileRow.created_at < now - GIVEN_UP_S),
                (FileRow.state == "ready") & (FileRow.expires_at <= now),
            )
        )
        async with self.database.read(EVERY_PROJECT) as session:
            found = list(await session.execute(query.limit(_SWEPT_AT_ONCE)))
        for project_id, file_id in found:
            await self._remove(project_id, file_id)
        return len(found)

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            try:
                swept = await self.sweep()
            except (StorageUnavailable, DatabaseUnavailable) as error:
                log.warning("files could not be swept", error=error.message)
                swept = 0
            if swept < _SWEPT_AT_ONCE:
                await asyncio.sleep(_SWEEP_S)

    # -- room

    async def check_room(self, project_id: str) -> None:
        """Raises StorageFull, DatabaseUnavailable."""
        if not self.max_stored_bytes:
            return
        async with self.database.read(Scope(project_id)) as session:
            if not await self._left_bytes(session, project_id):
                raise self._full(0)

    async def take_room(self, arrival: Arrival, size_bytes: int) -> int:
        """Room for an upload of at least so many bytes; returns how many. Raises StorageFull, Conflict if the upload was
        given up meanwhile, DatabaseUnavailable."""
        async with self.database.begin(Scope(arrival.project_id)) as session:
            await self._take_turn(session, arrival.project_id)
            left = await self._left_bytes(session, arrival.project_id, but=arrival.id)
            if size_bytes > left:
                raise self._full(left)
            row = await session.get(FileRow, arrival.id)
            if row is None:
                raise Conflict(_TOO_LONG)
            step_bytes = min(_MOST_STEP_BYTES, max(_LEAST_STEP_BYTES, size_bytes))
            row.size_bytes = min(left, size_bytes + step_bytes)
            return row.size_bytes

    async def _take_turn(self, session: AsyncSession, project_id: str) -> None:
        """Until the transaction ends nobody else counts this project's files. SQLite has one writer anyway."""
        if not self.database.is_sqlite:
            number = int.from_bytes(hashlib.sha256(project_id.encode()).digest()[:8], signed=True)
            await session.execute(select(func.pg_advisory_xact_lock(number)))

    async def _left_bytes(self, session: AsyncSession, project_id: str, but: str = "") -> int:
        """That the project's files leave, beside the one `but`. What has expired takes no room."""
        mine = (FileRow.project_id == project_id, FileRow.id != but, self._alive())
        taken = await session.scalar(select(func.sum(FileRow.size_bytes)).where(*mine))
        return max(0, self.max_stored_bytes - int(taken or 0))

    def _full(self, left_bytes: int) -> StorageFull:
        return StorageFull(
            f"All files of a project may take {self.max_stored_bytes} bytes, {left_bytes} of them are left; "
            "delete files that are not needed any more"
        )

    # -- inside

    def _alive(self) -> ColumnElement[bool]:
        return or_(FileRow.expires_at.is_(None), FileRow.expires_at > int(self.clock()))

    def _visible(self) -> tuple[ColumnElement[bool], ...]:
        return FileRow.state == "ready", self._alive()

    async def _get(self, session: AsyncSession, file_id: str) -> FileRow:
        row = None
        if file_id.isprintable():  # PostgreSQL takes no NUL in a text
            row = await session.scalar(select(FileRow).where(FileRow.id == file_id, *self._visible()))
        if row is None:
            raise NotFound(f"No such File object: {file_id[:100]}", param="id")
        return row

    async def _give_up(self, arrival: Arrival) -> None:
        try:
            await self._remove(arrival.project_id, arrival.id)
        except (StorageUnavailable, DatabaseUnavailable) as error:
            log.warning("a broken upload is swept later", file=arrival.id, error=error.message)

    async def _remove(self, project_id: str, file_id: str) -> None:
        async with self.database.begin(Scope(project_id)) as session:
            await session.execute(update(FileRow).where(FileRow.id == file_id).values(state="leaving"))
        await self.objects.delete(_name(project_id, file_id))
        async with self.database.begin(Scope(project_id)) as session:
            await session.execute(delete(FileRow).where(FileRow.id == file_id))


@dataclass
class Arrival:
    """A file on its way in."""

    files: Files
    project_id: str
    id: str
    most_bytes: int | None
    size_bytes: int = field(default=0, init=False)
    finished: bool = field(default=False, init=False)

    async def write(self, chunks: AsyncIterator[bytes]) -> None:
        """All of it. Raises RequestTooLarge, StorageFull, StorageUnavailable, DatabaseUnavailable."""
        limited = self._limited(chunks)
        self.size_bytes = await self.files.objects.put(_name(self.project_id, self.id), limited)

    async def finish(self, filename: str, purpose: str, *, expires_after_s: int | None = None) -> StoredFile:
        """The file is there for all of its project. Raises Conflict if it was given up meanwhile."""
        now = int(self.files.clock())
        async with self.files.database.begin(Scope(self.project_id)) as session:
            row = await session.get(FileRow, self.id)
            if row is None or row.state == "leaving":
                raise Conflict(_TOO_LONG)
            row.filename, row.purpose, row.size_bytes = filename, purpose, self.size_bytes
            row.state, row.created_at = "ready", now
            row.expires_at = None if expires_after_s is None else now + expires_after_s
        self.finished = True
        return _stored(row)

    async def _limited(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = room_bytes = 0
        limited = self.most_bytes is not None and self.files.max_stored_bytes
        async for chunk in chunks:
            size += len(chunk)
            if self.most_bytes is not None and size > self.most_bytes:
                raise RequestTooLarge(f"The file is too large; accepted: up to {self.most_bytes} bytes")
            if limited and size > room_bytes:
                room_bytes = await carried_through(self.files.take_room(self, size))
            yield chunk


def _name(project_id: str, file_id: str) -> str:
    return f"{project_id}/{file_id}"


def _stored(row: FileRow) -> StoredFile:
    return StoredFile(
        id=row.id,
        project_id=row.project_id,
        filename=row.filename,
        purpose=row.purpose,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
