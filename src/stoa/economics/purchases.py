"""What remotes have taken, in the ledger: beside the price of our own nodes' time, per account, to the nano-dollar.

A session is one remote in the life of one gateway. What is bought within a moment is one interval of it, without
duration, whose total is the sum of its entries; nothing of it is idle or lost. Intervals are numbered, so that one
whose commit was not answered is not booked twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import structlog
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.accounts import parse_account
from stoa.economics.api_prices import Purchase
from stoa.economics.split import SECOND_NS
from stoa.economics.tables import LedgerEntry, LedgerInterval, LedgerSession
from stoa.errors import DatabaseUnavailable
from stoa.storage.base import new_id
from stoa.storage.database import Database

log = structlog.get_logger("stoa.ledger")
LINE_ITEMS = ("api input", "api cached", "api output")
_Key = tuple[str, str, int]  # account, line item, second


class PurchaseLedger:
    """`add` from the event loop's thread; `run` books, once a second."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock`: Unix time."""
        self._database, self._clock = database, clock
        self._pending: dict[str, list[tuple[str, Purchase]]] = {}  # by remote
        self._sessions: dict[str, _Session] = {}
        self._turn = asyncio.Lock()

    def add(self, account: str, purchase: Purchase) -> None:
        self._pending.setdefault(purchase.remote, []).append((account, purchase))

    async def flush(self) -> None:
        """Books all that is pending. Raises DatabaseUnavailable; what is not booked then stays pending."""
        async with self._turn:
            for remote in [*self._pending, *(r for r, s in self._sessions.items() if s.batch)]:
                session = self._sessions.setdefault(remote, _Session())
                session.batch = session.batch or self._pending.pop(remote)
                session.number = await self._book(remote, session)
                session.batch = []

    async def run(self, pause_s: float = 1.0) -> None:
        """Until cancelled. While the database does not answer, purchases wait in memory."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                log.warning("purchases cannot be booked; trying again", error=error.message)

    async def spent(self, remote: str, since_s: int) -> int:
        """Nano-dollars taken by the remote since then, of all gateways; what is pending here included. Raises
        DatabaseUnavailable."""
        total = (
            select(func.coalesce(func.sum(LedgerInterval.total_nanos), 0))
            .join(LedgerSession, LedgerSession.id == LedgerInterval.session_id)
            .where(LedgerSession.node == _node(remote), LedgerInterval.start_ns >= since_s * SECOND_NS)
        )
        async with self._turn:
            async with self._database.read() as session:
                booked = int((await session.execute(total)).scalar_one())
            mine = self._sessions.get(remote)
            pending = [*self._pending.get(remote, ()), *(mine.batch if mine else ())]
            waiting: int = sum(p.parts.total_nanos for _, p in pending if p.at_s >= since_s)
            return booked + waiting

    async def _book(self, remote: str, mine: _Session) -> int:
        """The batch as one interval for each second, numbered from `mine.number` on. The next number."""
        amounts: Counter[_Key] = Counter()
        tokens: Counter[_Key] = Counter()
        for account, p in mine.batch:
            counts = (p.input_tokens - p.cached_tokens, p.cached_tokens, p.output_tokens)
            for item, nanos, count in zip(LINE_ITEMS, p.parts, counts, strict=True):
                amounts[account, item, p.at_s] += nanos
                tokens[account, item, p.at_s] += count
        number = mine.number
        async with self._database.begin() as session:
            await self._open(session, remote, mine)
            for at_s in sorted({key[2] for key in amounts}):
                keys = [k for k in amounts if k[2] == at_s and (amounts[k] or tokens[k])]
                if keys and not await session.get(LedgerInterval, (mine.id, number)):
                    await _book_second(
                        session, mine.id, number, at_s, {k: (amounts[k], tokens[k]) for k in keys}
                    )
                number += bool(keys)
        return number

    async def _open(self, session: AsyncSession, remote: str, mine: _Session) -> None:
        if await session.get(LedgerSession, mine.id) is None:
            now_ns = int(self._clock() * SECOND_NS)
            session.add(
                LedgerSession(
                    id=mine.id, node=_node(remote), machine="api", milliwatts=0, memory_ppm=0, pool_bytes=0,
                    started_ns=now_ns, booked_ns=now_ns, lost_count=0, ended_ns=now_ns,
                )
            )  # fmt: skip
            await session.flush()


class _Session:
    """The id of a remote's session, its next interval's number, and what is being booked: the same again if it has to
    be tried again, so that a number always means the same purchases."""

    def __init__(self) -> None:
        self.id = new_id("ledger")
        self.number = 0
        self.batch: list[tuple[str, Purchase]] = []


async def _book_second(
    session: AsyncSession, session_id: str, number: int, at_s: int, parts: dict[_Key, tuple[int, int]]
) -> None:
    moment = at_s * SECOND_NS
    total = sum(nanos for nanos, _ in parts.values())
    interval = {
        "session_id": session_id, "number": number, "start_ns": moment, "end_ns": moment, "total_nanos": total,
    }  # fmt: skip
    await session.execute(insert(LedgerInterval), [interval])
    entries = []
    for (account, item, _), (nanos, count) in parts.items():
        whose = parse_account(account)
        entries.append(
            {
                "session_id": session_id, "number": number, "line_item": item, "start_s": at_s,
                "project_id": whose.project_id, "key_id": whose.key_id, "model": whose.model,
                "amount_nanos": nanos, "quantity": count,
            }
        )  # fmt: skip
    await session.execute(insert(LedgerEntry), entries)


def _node(remote: str) -> str:
    return f"remote:{remote}"
