"""Which gateway works at which batch.

A lease is held until a time, and renewed. It has a term: who takes a batch over raises it, and every write says in
which term it is made. So clocks decide only how soon somebody takes over, never whose writing counts.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.batches.batch import UNFINISHED, Batch, batch_of
from stoa.batches.tables import BatchRow
from stoa.storage.carrying import carried_through
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, Scope

T = TypeVar("T")
Change = Callable[[AsyncSession, BatchRow], Awaitable[T]]
_CANDIDATES = 500


class LeaseLost(Exception):
    """Somebody else works at the batch by now."""


@dataclass(frozen=True)
class Lease:
    batch_id: str
    project_id: str
    term: int


@dataclass(frozen=True)
class Leases:
    """Of one gateway. `clock`: Unix time; those of several gateways should agree to a few seconds."""

    database: Database
    clock: Callable[[], float] = time.time
    lease_s: int = 30
    holder: str = field(default_factory=lambda: f"gateway_{secrets.token_hex(8)}")

    async def claim(self, places: int, running: Collection[Lease] = ()) -> list[Lease]:
        """Batches that nobody works at, up to `places`; `running`: those that this gateway works at. Raises
        DatabaseUnavailable."""
        return await carried_through(self._claim(places, running)) if places > 0 else []

    async def look(self, lease: Lease) -> Batch:
        """Raises LeaseLost, DatabaseUnavailable."""
        return await carried_through(self._look(lease))

    async def write(self, lease: Lease, change: Change[T]) -> T:
        """`change` in a transaction that counts only while the lease is held. Raises LeaseLost, DatabaseUnavailable."""
        return await carried_through(self._write(lease, change))

    async def renew(self, lease: Lease) -> None:
        """Raises LeaseLost, DatabaseUnavailable."""

        async def longer(session: AsyncSession, row: BatchRow) -> None:
            row.held_until = int(self.clock()) + self.lease_s

        await self.write(lease, longer)

    async def release(self, lease: Lease) -> None:
        """Others may take the batch at once. Raises LeaseLost if one has, DatabaseUnavailable."""

        async def no_longer(session: AsyncSession, row: BatchRow) -> None:
            row.held_until = 0

        await self.write(lease, no_longer)

    # -- transactions

    async def _claim(self, places: int, running: Collection[Lease]) -> list[Lease]:
        now = int(self.clock())
        free = (BatchRow.status.in_(UNFINISHED), BatchRow.held_until < now)
        order = (BatchRow.expires_at, BatchRow.id)
        query = select(BatchRow.id, BatchRow.project_id).where(*free).order_by(*order).limit(_CANDIDATES)
        async with self.database.read(EVERY_PROJECT) as session:
            found = [(row.id, row.project_id) for row in await session.execute(query)]
        mine = {lease.batch_id for lease in running}  # after a jump of the clock they may look free
        candidates = [(batch_id, project_id) for batch_id, project_id in found if batch_id not in mine]
        if not candidates:
            return []
        wanted = choose(candidates, Counter(lease.project_id for lease in running), places)
        chosen = select(BatchRow).where(BatchRow.id.in_(wanted), *free)
        async with self.database.begin(EVERY_PROJECT) as session:
            rows = list(await session.scalars(chosen.with_for_update(skip_locked=True)))
            for row in rows:
                row.holder, row.held_until, row.term = self.holder, now + self.lease_s, row.term + 1
            return [Lease(row.id, row.project_id, row.term) for row in rows]

    async def _look(self, lease: Lease) -> Batch:
        async with self.database.read(Scope(lease.project_id)) as session:
            return batch_of(_held(await session.get(BatchRow, lease.batch_id), lease))

    async def _write(self, lease: Lease, change: Change[T]) -> T:
        async with self.database.begin(Scope(lease.project_id)) as session:
            row = await session.get(BatchRow, lease.batch_id, with_for_update=True)
            return await change(session, _held(row, lease))


def _held(row: BatchRow | None, lease: Lease) -> BatchRow:
    if row is None or row.term != lease.term:
        raise LeaseLost(lease.batch_id)
    return row


def choose(candidates: Sequence[tuple[str, str]], running: Mapping[str, int], places: int) -> list[str]:
    """Of (batch, project), the most urgent first: projects with the fewest batches at work come first, so that nobody's
    pile of them stands before others."""
    count = Counter(running)
    left = list(candidates)
    chosen: list[str] = []
    while left and len(chosen) < places:
        least = min(range(len(left)), key=lambda i: (count[left[i][1]], i))
        batch_id, project_id = left.pop(least)
        count[project_id] += 1
        chosen.append(batch_id)
    return chosen
