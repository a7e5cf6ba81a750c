"""How a batch ends: its results become files, and it gets its last status.

The files' ids are made from the batch's, and their content from what is in the database: whoever does it again after
a crash makes the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.batches.batch import Batch, Status, enter
from stoa.batches.lease import Lease, Leases
from stoa.batches.lines import cut, read_line
from stoa.batches.results import CANCELLED, EXPIRED, not_run
from stoa.batches.tables import BatchRow, ResultRow
from stoa.batches.work import Work
from stoa.errors import NotFound
from stoa.storage.carrying import carried_through
from stoa.storage.database import Database
from stoa.storage.files import Files
from stoa.storage.scope import Scope

_AT_ONCE = 500


async def done_lines(database: Database, batch: Batch) -> set[int]:
    """Numbers of the lines that have a result."""
    query = select(ResultRow.line).where(ResultRow.batch_id == batch.id)
    async with database.read(Scope(batch.project_id)) as session:
        return set(await session.scalars(query))


async def end(batch: Batch, lease: Lease, leases: Leases, files: Files, work: Work) -> None:
    """Of one that is finalizing or cancelling. Raises LeaseLost, DatabaseUnavailable, StorageUnavailable."""
    missing = batch.total - batch.completed - batch.failed
    output = error = None
    if batch.completed:
        output = await _write(batch, files, "output", _results(leases.database, batch, failed=False))
    if batch.failed or missing:
        error = await _write(batch, files, "error", _failures(leases.database, files, batch, missing))

    async def last(session: AsyncSession, row: BatchRow) -> None:
        row.output_file_id, row.error_file_id = output, error
        row.failed += missing
        enter(row, _last(batch, missing), int(leases.clock()))
        row.held_until = 0
        await session.execute(delete(ResultRow).where(ResultRow.batch_id == batch.id))

    async def finish() -> None:
        await leases.write(lease, last)
        work.not_run += missing

    await carried_through(finish())


def _last(batch: Batch, missing: int) -> Status:
    if batch.status == "cancelling":
        return "cancelled"
    if batch.errors:
        return "failed"
    return "expired" if missing else "completed"


async def _write(batch: Batch, files: Files, kind: str, lines: AsyncIterator[bytes]) -> str | None:
    """The file's id; None if there was nothing to write."""
    file_id = f"file-{hashlib.sha256(f'{batch.id}/{kind}'.encode()).hexdigest()[:24]}"
    async with files.arrival(batch.project_id, file_id) as arrival:
        await arrival.write(lines)
        if not arrival.size_bytes:
            return None
        name = f"{batch.id}_{kind}.jsonl"
        await arrival.finish(name, "batch_output", expires_after_s=batch.output_expires_after_s)
    return file_id


async def _results(database: Database, batch: Batch, *, failed: bool) -> AsyncIterator[bytes]:
    """In the order of the input."""
    mine = (ResultRow.batch_id == batch.id, ResultRow.failed == failed)
    query = select(ResultRow).where(*mine).order_by(ResultRow.line).limit(_AT_ONCE)
    last = 0
    while True:
        async with database.read(Scope(batch.project_id)) as session:
            rows = await _page(session, query.where(ResultRow.line > last))
        if not rows:
            return
        yield "".join(f"{row.body}\n" for row in rows).encode()
        last = rows[-1].line


async def _page(session: AsyncSession, query: object) -> list[ResultRow]:
    return list(await session.scalars(query))  # type: ignore[call-overload]


async def _failures(database: Database, files: Files, batch: Batch, missing: int) -> AsyncIterator[bytes]:
    """What failed, then what was not run."""
    async for some in _results(database, batch, failed=True):
        yield some
    if missing:
        done = await done_lines(database, batch)
        why = CANCELLED if batch.status == "cancelling" else EXPIRED
        async for some in _not_run(files, batch, done, why):
            yield some


async def _not_run(
    files: Files, batch: Batch, done: Collection[int], why: tuple[str, str]
) -> AsyncIterator[bytes]:
    """Nothing if the input is gone: then nobody can say what was asked."""
    try:
        file = await files.get(batch.project_id, batch.input_file_id)
        async with aclosing(files.content(file)) as chunks:
            async for some in cut(chunks):
                left = [raw for raw in some if raw.number not in done]
                lines = [read_line(raw, batch.endpoint)[0] for raw in left]
                yield b"".join(not_run(line.custom_id, why) for line in lines)
    except NotFound:
        return
