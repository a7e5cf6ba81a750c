"""The ledger: what a node's time has cost, and whose it was, to the last nano-dollar.

A session is one life of one engine. Its time is booked without gap: what the engine reported, by its lines;
what it did not report, as lost. Each interval is one transaction whose truth is the session's row (`booked_ns`),
so that a repeated report, a crash or a lost answer of the database never books a moment twice.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.prices import PriceBook, PriceTable, read_table
from stoa.economics.split import HOUR_NS, PPM, SECOND_NS, Entry, Segment, divide_lost, divide_used, segments
from stoa.economics.tables import LedgerEntry, LedgerInterval, LedgerSession
from stoa.engine.usage import Interval, RequestUsage
from stoa.errors import ConfigError, Conflict
from stoa.storage.base import new_id
from stoa.storage.database import Database

log = structlog.get_logger("stoa.ledger")
Divide = Callable[[Segment], list[Entry]]


class Ledger:
    """Books the time of one node. `start` begins a session, and may do so again after `close`.

    All methods that await raise DatabaseUnavailable, book nothing then, and can be called again.
    """

    def __init__(
        self,
        database: Database,
        prices: PriceBook,
        node: str,
        machine: str = "default",
        watts: float = 0.0,
        memory_share: float = 0.2,
    ) -> None:
        """`machine`: the type that prices speak of. `memory_share`: φ in [0, 1]. Raises ConfigError."""
        if not 0 <= memory_share <= 1:
            raise ConfigError(f"memory_share is {memory_share}; accepted: a number from 0 to 1")
        if not 0 <= watts <= 10**6:
            raise ConfigError(f"watts is {watts}; accepted: a number from 0 to 1000000")
        self._database = database
        self._prices = prices
        self._node = node
        self._machine = machine
        self._milliwatts = round(watts * 1000)
        self._memory_ppm = round(memory_share * PPM)
        self._table = PriceTable()
        self.session_id: str | None = None

    async def start(self, origin_ns: int, pool_bytes: int) -> str:
        """A new session whose time counts from `origin_ns`. Its id."""
        row = LedgerSession(
            id=new_id("ledger"),
            node=self._node,
            machine=self._machine,
            milliwatts=self._milliwatts,
            memory_ppm=self._memory_ppm,
            pool_bytes=pool_bytes,
            started_ns=origin_ns,
            booked_ns=origin_ns,
            lost_count=0,
            ended_ns=None,
        )
        async with self._database.begin() as session:
            session.add(row)
            self._table = await read_table(session)
        self.session_id = row.id
        return row.id

    async def record(self, interval: Interval) -> None:
        """Books the interval, and time between the last one's end and its start as lost. What is booked already is
        left alone: the same interval twice, or the part that an earlier `lost` covered. Raises Conflict if
        another engine's interval of that number is in this session."""
        async with self._database.begin() as session:
            row = await self._lock(session)
            if interval.end_ns <= max(row.booked_ns, interval.start_ns):
                return
            if await session.get(LedgerInterval, (row.id, interval.number)):
                raise Conflict(
                    f"interval {interval.number} is booked with another time; start a session per engine"
                )
            if interval.start_ns > row.booked_ns:
                await self._book_lost(session, row, interval.start_ns)
            await self._book(
                session,
                row,
                interval.number,
                interval.end_ns,
                lambda segment: divide_used(segment, interval, row.memory_ppm),
            )

    async def lost(self, until_ns: int) -> None:
        """The engine died: all since the last interval is booked as lost."""
        async with self._database.begin() as session:
            row = await self._lock(session)
            if until_ns > row.booked_ns:
                await self._book_lost(session, row, until_ns)

    async def close(self, end_ns: int) -> None:
        """Ends the session at `end_ns`, or at what is booked if that is later; what is missing is lost."""
        async with self._database.begin() as session:
            row = await self._lock(session)
            if end_ns > row.booked_ns:
                await self._book_lost(session, row, end_ns)
            row.ended_ns = row.booked_ns
        self.session_id = None

    async def refresh(self) -> None:
        """Reads the prices again; `record` does so by itself."""
        self._table = await self._prices.table()

    def hourly_nanos(self, at_s: float) -> int:
        """What the node costs per hour at that time, as of the last time prices were read."""
        return self._table.hourly_nanos(self._machine, self._milliwatts, int(at_s))

    def cost_nanos(self, usage: RequestUsage, pool_bytes: int, at_s: float) -> int:
        """What one request cost, by the rules and prices of the ledger, rounded up. Asks no database."""
        byte_ms = usage.kv_byte_ms + usage.adapter_byte_ms
        pool = max(pool_bytes, 1) * 10**3  # bytes in use for one second, in byte-ms
        scale = PPM * HOUR_NS * pool
        compute = (PPM - self._memory_ppm) * usage.compute_ns * pool
        memory = self._memory_ppm * byte_ms * SECOND_NS
        return -(-self.hourly_nanos(at_s) * (compute + memory) // scale)

    async def _lock(self, session: AsyncSession) -> LedgerSession:
        """The session's row, ours until the transaction ends: its first statement writes."""
        assert self.session_id is not None, "the ledger has no open session"
        mine = LedgerSession.id == self.session_id
        await session.execute(update(LedgerSession).where(mine).values(node=LedgerSession.node))
        self._table = await read_table(session)
        return (await session.scalars(select(LedgerSession).where(mine))).one()

    async def _book_lost(self, session: AsyncSession, row: LedgerSession, until_ns: int) -> None:
        log.warning("engine time is lost", session=row.id, ms=(until_ns - row.booked_ns) // 10**6)
        row.lost_count += 1
        await self._book(session, row, -row.lost_count, until_ns, divide_lost)

    async def _book(
        self, session: AsyncSession, row: LedgerSession, number: int, end_ns: int, divide: Divide
    ) -> None:
        """[row.booked_ns, end_ns), divided by `divide`."""
        parts = segments(self._table, row.machine, row.milliwatts, row.started_ns, row.booked_ns, end_ns)
        interval = {
            "session_id": row.id,
            "number": number,
            "start_ns": row.booked_ns,
            "end_ns": end_ns,
            "total_nanos": sum(p.total_nanos for p in parts),
        }
        await session.execute(insert(LedgerInterval), [interval])
        entries = [_values(row.id, number, e) for part in parts for e in divide(part)]
        assert sum(e["amount_nanos"] for e in entries) == interval["total_nanos"]  # type: ignore[misc]
        if entries:
            await session.execute(insert(LedgerEntry), entries)
        row.booked_ns = end_ns


def _values(session_id: str, number: int, entry: Entry) -> dict[str, int | str | None]:
    project, key, model = entry.account or (None, None, None)
    return {
        "session_id": session_id,
        "number": number,
        "project_id": project,
        "key_id": key,
        "model": model,
        "line_item": entry.line_item,
        "amount_nanos": entry.amount_nanos,
        "quantity": entry.quantity,
        "start_s": entry.start_s,
    }
