"""One batch under a lease: from state to state until it has ended, or somebody else has it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.batches.batch import UNFINISHED, Batch, LineError, enter
from stoa.batches.ending import done_lines, end
from stoa.batches.feed import Equipment, Feed
from stoa.batches.lease import Lease, LeaseLost, Leases
from stoa.batches.lines import Inspection, InvalidLine, cut
from stoa.batches.tables import BatchRow, ResultRow
from stoa.errors import DatabaseUnavailable, NotFound, StoaError
from stoa.storage.carrying import carried_through

_LOOK_S = 1.0  # how often it is looked whether somebody cancelled
_GONE = LineError("input_file_gone", "The input file was deleted before the batch had ended.")
_FAULT = LineError(
    "server_error", "The server had an error when it looked at the input file; its log has more."
)
log = structlog.get_logger("stoa.batches")


class BatchRun:
    def __init__(self, lease: Lease, leases: Leases, tools: Equipment) -> None:
        self._lease, self._leases, self._tools = lease, leases, tools
        self._feed: Feed | None = None
        self._looked_s = self._renewed_s = leases.clock()

    async def run(self) -> None:
        """Raises LeaseLost; StorageUnavailable, DatabaseUnavailable: then it can be taken up again when the lease is over.
        Cancelled, it writes down what it has and leaves the batch to others."""
        try:
            while (batch := await self._leases.look(self._lease)).status in UNFINISHED:
                if batch.status == "validating":
                    await carried_through(self._while_held(self._validate(batch), batch))
                elif batch.status == "in_progress":
                    await self._work(batch)
                else:
                    ending = end(batch, self._lease, self._leases, self._tools.files, self._tools.work)
                    await carried_through(self._while_held(ending, batch))
        except Exception:
            await self._leave(at_once=False)
            raise
        except BaseException:
            await carried_through(self._leave(at_once=True))
            raise

    # -- validating

    async def _validate(self, batch: Batch) -> None:
        """What time may mend is tried again within the window; all else fails the batch."""
        try:
            await self._judge(await self._inspect(batch))
        except LeaseLost:
            raise
        except StoaError as error:
            if self._leases.clock() < batch.expires_at:
                raise
            message = f"The input file could not be looked at within the completion window: {error.message}"
            await self._judge(Inspection(batch.endpoint, errors=[LineError("server_error", message)]))
        except Exception:
            log.exception("a batch cannot be validated", batch=batch.id)
            await self._judge(Inspection(batch.endpoint, errors=[_FAULT]))

    async def _inspect(self, batch: Batch) -> Inspection:
        """Raises StorageUnavailable, DatabaseUnavailable."""
        inspection = Inspection(batch.endpoint)
        try:
            file = await self._tools.files.get(batch.project_id, batch.input_file_id)
            async with aclosing(self._tools.files.content(file)) as chunks:
                async for some in cut(chunks):
                    await asyncio.to_thread(inspection.add, some)
                    if inspection.hopeless:
                        break
            inspection.end()
        except NotFound:
            inspection.errors.append(_GONE)
        except InvalidLine as invalid:
            inspection.errors.append(invalid.error)
        return inspection

    async def _judge(self, inspection: Inspection) -> None:
        """Raises LeaseLost, DatabaseUnavailable."""

        async def judge(session: AsyncSession, row: BatchRow) -> None:
            if row.status != "validating":  # cancelled meanwhile
                return
            row.errors = [msgspec.structs.asdict(error) for error in inspection.errors] or None
            enter(row, "failed" if row.errors else "in_progress", int(self._leases.clock()))
            row.total = 0 if row.errors else inspection.total
            row.model = None if row.errors else inspection.model

        await self._leases.write(self._lease, judge)

    # -- in progress

    async def _work(self, batch: Batch) -> None:
        done = await carried_through(done_lines(self._leases.database, batch))
        gone = False
        if self._leases.clock() < batch.expires_at:
            gone = not await self._send(batch, done)

        async def finalize(session: AsyncSession, row: BatchRow) -> None:
            if row.status != "in_progress":  # cancelled meanwhile
                return
            if gone and row.completed + row.failed < row.total:
                row.errors = [msgspec.structs.asdict(_GONE)]
            enter(row, "finalizing", int(self._leases.clock()))

        await self._leases.write(self._lease, finalize)

    async def _send(self, batch: Batch, done: set[int]) -> bool:
        """What is left of its lines. False: the input is gone."""
        try:
            file = await carried_through(self._tools.files.get(batch.project_id, batch.input_file_id))
        except NotFound:
            return False
        self._feed = feed = Feed(batch, file, done, self._tools)
        await self._while_held(feed.run(), batch)
        await self._write_all()
        self._feed = None
        return not feed.input_gone

    async def _write_all(self) -> None:
        while self._feed is not None and self._feed.results:
            try:
                await self._write()
            except DatabaseUnavailable:
                await asyncio.sleep(self._tools.tick_s)

    async def _write(self) -> str:
        """Writes results down, once and for all; returns the batch's status. Raises LeaseLost, DatabaseUnavailable."""
        return await carried_through(self._write_down())

    async def _write_down(self) -> str:
        assert self._feed is not None
        results = list(self._feed.results)
        failed = sum(result.failed for result in results)
        lease = self._lease

        async def add(session: AsyncSession, row: BatchRow) -> str:
            rows = [
                {
                    "project_id": lease.project_id,
                    "batch_id": lease.batch_id,
                    "line": result.line,
                    "failed": result.failed,
                    "body": result.text,
                }
                for result in results
            ]
            await session.execute(insert(ResultRow), rows)
            row.failed += failed
            row.completed += len(results) - failed
            row.input_tokens += sum(r.tokens.input for r in results)
            row.cached_tokens += sum(r.tokens.cached for r in results)
            row.output_tokens += sum(r.tokens.output for r in results)
            return row.status

        status = await self._leases.write(lease, add)
        del self._feed.results[: len(results)]
        self._tools.work.failed += failed
        self._tools.work.completed += len(results) - failed
        return status

    # -- meanwhile

    async def _while_held(self, work: Coroutine[Any, Any, None], batch: Batch) -> None:
        """Until `work` is done, or has no point any more: somebody cancels the batch, or its window is over."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._tools.tick_s)
                if not task.done() and await self._look(batch):
                    return
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _look(self, batch: Batch) -> bool:
        """Keeps lease and results in the database; whether the work should stop. Raises LeaseLost."""
        now, status = self._leases.clock(), batch.status
        try:
            if self._feed is not None and self._feed.results:
                status = await self._write()  # type: ignore[assignment]
            elif not 0 <= now - self._looked_s < _LOOK_S:
                self._looked_s = now
                status = (await self._leases.look(self._lease)).status
            if not 0 <= now - self._renewed_s < self._leases.lease_s / 3:
                await self._leases.renew(self._lease)
                self._renewed_s = now
        except DatabaseUnavailable:
            return False  # what runs goes on; the lease may run out
        expired = batch.status == "in_progress" and now >= batch.expires_at
        return expired or status != batch.status

    async def _leave(self, *, at_once: bool) -> None:
        """With all results written down that can be. Not `at_once`: whatever went wrong gets the time of the lease."""
        with contextlib.suppress(LeaseLost, DatabaseUnavailable):
            if self._feed is not None and self._feed.results:
                await self._write()
            if at_once:
                await self._leases.release(self._lease)
