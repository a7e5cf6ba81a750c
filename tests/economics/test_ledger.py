"""The ledger: every nano-dollar of wall time is booked once, whatever fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.accounts import Account
from stoa.economics.estimate import CostEstimate
from stoa.economics.ledger import Ledger
from stoa.economics.prices import PriceBook, PriceTable
from stoa.economics.split import HOUR_NS
from stoa.economics.tables import LedgerEntry, LedgerInterval, LedgerSession
from stoa.engine.usage import AccountLine, Interval, RequestUsage
from stoa.errors import ConfigError, Conflict, DatabaseUnavailable
from stoa.storage.base import Base
from stoa.storage.database import Database
from stoa.storage.scope import Scope

S = 10**9
EPOCH_S = 1_800_000_000
EPOCH_NS = EPOCH_S * S
POOL = 1 << 20


def interval(number: int, start_ns: int, end_ns: int, draw: random.Random | None = None) -> Interval:
    """Use by up to three accounts, at random but possible."""
    draw, span = draw or random.Random(number), end_ns - start_ns
    left, free = span, POOL * span // 10**6
    lines = []
    for name in draw.sample("abc", draw.randint(0, 3)):
        compute, kv = draw.randint(0, left), draw.randint(0, free)
        left, free = left - compute, free - kv
        lines.append(AccountLine(account=str(Account(name, None, "m")), compute_ns=compute, kv_byte_ms=kv))
    return Interval(
        number=number, start_ns=start_ns, end_ns=end_ns, busy_ns=span - left, pool_bytes=POOL, lines=lines
    )


@pytest.fixture
async def book(database: Database) -> PriceBook:
    book = PriceBook(database, clock=lambda: EPOCH_S)
    await book.seed(2)
    return book


@pytest.fixture
async def ledger(database: Database, book: PriceBook) -> Ledger:
    ledger = Ledger(database, book, "node")
    await ledger.start(EPOCH_NS, POOL)
    return ledger


async def total(database: Database, *line_items: str) -> int:
    query = select(func.coalesce(func.sum(LedgerEntry.amount_nanos), 0))
    if line_items:
        query = query.where(LedgerEntry.line_item.in_(line_items))
    async with database.read() as session:
        return int((await session.execute(query)).scalar_one())


async def check_conserved(database: Database, table: PriceTable) -> None:
    """Entries sum to their interval, intervals follow each other, and all of a session's telescopes to its time."""
    async with database.read() as session:
        intervals = (await session.scalars(select(LedgerInterval).order_by(LedgerInterval.start_ns))).all()
        entries = (await session.scalars(select(LedgerEntry))).all()
        sessions = (await session.scalars(select(LedgerSession))).all()
    sums: dict[tuple[str, int], int] = {}
    for e in entries:
        sums[e.session_id, e.number] = sums.get((e.session_id, e.number), 0) + e.amount_nanos
    assert all(sums.get((i.session_id, i.number), 0) == i.total_nanos for i in intervals)
    for row in sessions:
        mine = [i for i in intervals if i.session_id == row.id]
        edges = [row.started_ns, *[i.end_ns for i in mine]]
        assert [i.start_ns for i in mine] == edges[:-1]
        assert edges[-1] == row.booked_ns
        assert sum(i.total_nanos for i in mine) == price_of(table, row.started_ns, row.booked_ns)


def price_of(table: PriceTable, start_ns: int, end_ns: int) -> int:
    """The slow twin: price by price, each rounded down once."""
    found = 0
    for span in table:
        low = max(start_ns, span.valid_from_s * S)
        high = end_ns if span.valid_to_s is None else min(end_ns, span.valid_to_s * S)
        if low < high:
            found += span.amount_nanos * (high - low) // HOUR_NS
    return found


async def test_time_is_booked_to_whom_it_was(database: Database, book: PriceBook, ledger: Ledger) -> None:
    """Repeated reports count once, a gap and a death are lost, and the end closes the session."""
    for n in (0, 1, 1, 0):
        await ledger.record(interval(n, EPOCH_NS + n * S, EPOCH_NS + (n + 1) * S))
    await ledger.record(interval(2, EPOCH_NS + 5 * S, EPOCH_NS + 6 * S))
    lost = await total(database, "lost")
    assert abs(lost - 3 * 100_000_000 // 3600) <= 1
    await ledger.lost(EPOCH_NS + 8 * S)
    await ledger.lost(EPOCH_NS + 8 * S)
    await ledger.close(EPOCH_NS + 10 * S)
    await check_conserved(database, await book.table())
    assert await total(database) == 100_000_000 * 10 // 3600


async def test_a_late_interval_gets_what_is_not_booked_yet(
    database: Database, book: PriceBook, ledger: Ledger
) -> None:
    """When an engine was given up too early, the part after that is booked by its lines."""
    await ledger.lost(EPOCH_NS + S // 2)
    await ledger.record(interval(0, EPOCH_NS, EPOCH_NS + S))
    await check_conserved(database, await book.table())
    assert await total(database) == 100_000_000 // 3600


async def test_another_engine_needs_another_session(ledger: Ledger) -> None:
    """A number that stands for another time is refused rather than ignored."""
    await ledger.record(interval(0, EPOCH_NS, EPOCH_NS + S))
    with pytest.raises(Conflict, match="session per engine"):
        await ledger.record(interval(0, EPOCH_NS + S, EPOCH_NS + 2 * S))


async def test_a_price_change_inside_an_interval(database: Database, book: PriceBook, ledger: Ledger) -> None:
    """Time before it has the old price and time after it the new one, also when it is set before it comes."""
    await book.set_price("machine:default", "3600", EPOCH_S + 1)
    await ledger.record(interval(0, EPOCH_NS, EPOCH_NS + 2 * S))
    assert await total(database) == 100_000_000 // 3600 + S
    await check_conserved(database, await book.table())


async def test_one_request_by_the_same_rates(ledger: Ledger) -> None:
    """All of a node's compute and memory for an hour costs its price; anything costs something."""
    hour = RequestUsage(request_id="r", outcome="stop", compute_ns=HOUR_NS, kv_byte_ms=POOL * 3_600_000)
    assert ledger.cost_nanos(hour, POOL, EPOCH_S) == 100_000_000
    assert ledger.cost_nanos(RequestUsage(request_id="r", outcome="stop", compute_ns=1), POOL, EPOCH_S) == 1
    assert ledger.cost_nanos(RequestUsage(request_id="r", outcome="stop"), POOL, EPOCH_S) == 0


async def test_settings_out_of_range_are_refused(database: Database) -> None:
    """A share is between 0 and 1, power is not negative."""
    for bad in ({"memory_share": 1.5}, {"watts": -1.0}, {"watts": float("nan")}):
        with pytest.raises(ConfigError):
            Ledger(database, PriceBook(database), "n", **bad)  # type: ignore[arg-type]


class Breaking(Database):
    """Fails in the middle of a chosen transaction, or after its commit, as a lost connection would."""

    fail: str = ""

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        fail, self.fail = self.fail, ""
        async with super().begin(scope) as session:
            yield session
            if fail == "before":
                await session.flush()
                raise ConnectionError("gone")
        if fail == "after":
            raise ConnectionError("gone")


steps = st.lists(
    st.tuples(
        st.sampled_from(["record", "record", "record", "again", "gap", "crash", "die", "lost", "price"]),
        st.integers(1, 3 * S),
        st.sampled_from(["", "", "", "before", "after"]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps, st.integers(0, 2**32), st.integers(0, S))
def test_nothing_is_lost_or_booked_twice(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, int, str]], seed: int, offset: int
) -> None:
    """Random intervals, repeated, with gaps, price changes, broken transactions and processes that die."""
    asyncio.run(_live(tmp_path_factory.mktemp("ledger"), plan, random.Random(seed), offset))


async def _live(folder: Path, plan: list[tuple[str, int, str]], draw: random.Random, offset: int) -> None:
    database = Breaking(f"sqlite+aiosqlite:///{folder / 'db'}")
    await database.run(Base.metadata.create_all)
    book = PriceBook(database, clock=lambda: EPOCH_S)
    await book.seed(2)
    ledger = Ledger(database, book, "node")
    now, number, last, price_s = EPOCH_NS + offset, 0, None, EPOCH_S
    await ledger.start(now, POOL)
    for what, length, fail in plan:
        if what == "price":
            price_s = max(price_s, now // S + length // S) + 1
            await book.set_price("machine:default", draw.randint(0, 10**12) / 1e9, price_s)
            continue
        if what in ("crash", "die"):
            # A new process, a new engine: time until it is there belongs to no session, or is lost by `close`.
            now += length
            if what == "die":
                await insistent(database, fail, lambda: ledger.close(now))  # noqa: B023
            ledger, number, last = Ledger(database, book, "node"), 0, None
            await ledger.start(now, POOL)
            continue
        if what == "lost":
            now += length
            await insistent(database, fail, lambda: ledger.lost(now))  # noqa: B023
            continue
        if what == "gap":
            now += length
        if what != "again" or last is None:
            last = interval(number, now, now + length, draw)
            now, number = last.end_ns, number + 1
        report = last
        await insistent(database, fail, lambda: ledger.record(report))  # noqa: B023
    await check_conserved(database, await book.table())
    await database.close()


async def insistent(database: Breaking, fail: str, act: Callable[[], Awaitable[None]]) -> None:
    """Once with the failure, if there is one, then again as a caller would."""
    if fail:
        database.fail = fail
        with suppress(DatabaseUnavailable, ConnectionError):
            await act()
    database.fail = ""
    await act()


def test_estimates_start_high_and_learn() -> None:
    """Before anything is known an hour's price is spread over few tokens; then a high quantile of what came is taken,
    and old requests are forgotten."""
    estimate = CostEstimate(100_000_000)
    assert estimate.nanos(0, 0) == 0
    assert estimate.nanos(100, 100) > 100 * 10_000
    usage = RequestUsage(
        request_id="r", outcome="stop", prompt_tokens=110, cached_tokens=10, completion_tokens=51,
        prefill_ns=S, decode_ns=3 * S,
    )  # fmt: skip
    for _ in range(400):
        estimate.learn(usage, 4000)
    assert estimate.nanos(100, 0) == 1000
    assert estimate.nanos(0, 50) == 3000
    for n in range(300):
        estimate.learn(usage, 400_000 if n % 10 == 0 else 40)
    assert estimate.nanos(100, 0) == 100_000
    for _ in range(300):
        estimate.learn(usage, 40)
    assert estimate.nanos(100, 50) == 40
