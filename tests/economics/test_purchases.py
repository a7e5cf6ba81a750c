"""What remotes take is priced to the nano-dollar, booked once, and conserved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.accounts import Account
from stoa.economics.api_prices import MILLION, ApiPrice, ApiPrices, Parts, Purchase, api_price, priced
from stoa.economics.cost_report import CostCell, regroup, spread
from stoa.economics.prices import PriceBook, PriceSpan, PriceTable
from stoa.economics.purchases import PurchaseLedger
from stoa.economics.tables import LedgerEntry, LedgerInterval, LedgerSession
from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database

NOW_S = 1_800_000_000
NANOS = st.integers(0, 10**14)
TOKENS = st.integers(0, 10**6)


@given(NANOS, NANOS, NANOS, TOKENS, TOKENS, TOKENS)
def test_the_parts_of_a_price_sum_to_it_rounded_up_once(
    a: int, b: int, c: int, tokens: int, cached: int, output: int
) -> None:
    """Cached tokens are a part of the input, whatever the remote says; no request costs more than its bound."""
    price, inside = ApiPrice(a, b, c), min(cached, tokens)
    parts = priced(price, tokens, cached, output)
    exact = a * (tokens - inside) + b * inside + c * output
    assert parts.total_nanos == -(-exact // MILLION)
    assert min(parts) >= 0
    assert parts.total_nanos <= price.most_nanos(tokens, output)


def test_the_table_wins_over_what_the_settings_say() -> None:
    """From its time on, item by item; cached input costs as input where it has no price."""
    table = PriceTable([PriceSpan("api:gpt-x:input", "1M tokens", 5, 100)])
    otherwise = ApiPrice(1, 2, 3)
    assert api_price(table, "gpt-x", 99, otherwise) == otherwise
    assert api_price(table, "gpt-x", 100, otherwise) == ApiPrice(5, 5, 3)
    assert api_price(table, "other", 100, otherwise) == otherwise


async def test_a_new_price_counts_once_it_is_read(database: Database) -> None:
    """Until then, what the settings say."""
    book = PriceBook(database, clock=lambda: NOW_S)
    prices, otherwise = ApiPrices(book), ApiPrice(1, 2, 3)
    await book.set_price("api:gpt-x:output", "2.5")
    assert prices.of("gpt-x", NOW_S, otherwise) == otherwise
    await prices.refresh()
    assert prices.of("gpt-x", NOW_S, otherwise) == ApiPrice(1, 2, 2_500_000_000)


def bought(nanos: int, at_s: int = NOW_S, remote: str = "there") -> Purchase:
    return Purchase(remote, "gpt-x", 10, 4, 7, Parts(nanos, 0, 2 * nanos), at_s)


ALICE, BOB = str(Account("proj_a", "key_1", "m")), str(Account("proj_b", None, "m"))


@pytest.fixture
def ledger(database: Database) -> PurchaseLedger:
    return PurchaseLedger(database, clock=lambda: float(NOW_S))


async def sums(database: Database) -> tuple[int, int, int]:
    """(of entries, of intervals, number of intervals)."""
    async with database.read() as session:
        entries = (
            await session.execute(select(func.coalesce(func.sum(LedgerEntry.amount_nanos), 0)))
        ).scalar_one()
        totals = (
            await session.execute(
                select(
                    func.coalesce(func.sum(LedgerInterval.total_nanos), 0), func.count(LedgerInterval.number)
                )
            )
        ).one()
    return int(entries), int(totals[0]), int(totals[1])


async def test_entries_sum_to_what_was_bought(database: Database, ledger: PurchaseLedger) -> None:
    """By account and kind of tokens, each second an interval; each remote a session."""
    for at_s in (NOW_S, NOW_S + 1):
        ledger.add(ALICE, bought(5, at_s))
        ledger.add(ALICE, bought(7, at_s))
        ledger.add(BOB, bought(1, at_s))
    ledger.add(BOB, bought(100, remote="elsewhere"))
    await ledger.flush()
    await ledger.flush()
    assert await sums(database) == (378, 378, 3)
    async with database.read() as session:
        rows = (await session.scalars(select(LedgerEntry).where(LedgerEntry.start_s == NOW_S + 1))).all()
        nodes = (await session.scalars(select(LedgerSession.node))).all()
    assert sorted(nodes) == ["remote:elsewhere", "remote:there"]
    assert {(r.project_id, r.line_item): (r.amount_nanos, r.quantity) for r in rows} == {
        ("proj_a", "api input"): (12, 12),
        ("proj_a", "api cached"): (0, 8),
        ("proj_a", "api output"): (24, 14),
        ("proj_b", "api input"): (1, 6),
        ("proj_b", "api cached"): (0, 4),
        ("proj_b", "api output"): (2, 7),
    }


async def test_what_was_spent_counts_what_is_not_written_yet(
    database: Database, ledger: PurchaseLedger
) -> None:
    """And what other gateways have booked; earlier periods and other remotes do not count."""
    other = PurchaseLedger(database, clock=lambda: float(NOW_S))
    other.add(BOB, bought(1000))
    await other.flush()
    ledger.add(ALICE, bought(1, NOW_S - 1))
    ledger.add(ALICE, bought(10))
    await ledger.flush()
    ledger.add(ALICE, bought(100))
    ledger.add(ALICE, bought(7, remote="elsewhere"))
    assert await ledger.spent("there", NOW_S) == 3330


class Unreliable:
    """A database whose commits fail, before or after they have happened."""

    def __init__(self, database: Database, failures: list[str]) -> None:
        self._database, self.failures = database, failures

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        how = self.failures.pop(0) if self.failures else ""
        async with self._database.begin() as session:
            yield session
            if how == "before":
                raise DatabaseUnavailable("away")
        if how == "after":
            raise DatabaseUnavailable("no answer")

    def read(self) -> object:
        return self._database.read()


async def test_no_failure_books_anything_twice_or_never(database: Database) -> None:
    """Also where the commit happened and its answer was lost, with more bought meanwhile."""
    unreliable = Unreliable(database, ["before", "after", "before", "after"])
    ledger = PurchaseLedger(unreliable, clock=lambda: float(NOW_S))  # type: ignore[arg-type]
    for nanos in (1, 10, 100, 1000):
        ledger.add(ALICE, bought(nanos))
        with pytest.raises(DatabaseUnavailable):
            await ledger.flush()
    assert await ledger.spent("there", 0) >= 3333
    await ledger.flush()
    assert (await sums(database))[:2] == (3333, 3333)
    assert await ledger.spent("there", 0) == 3333


def test_what_remotes_took_stays_where_it_was_and_bears_no_idle_time() -> None:
    """Idle time goes to those who used our nodes."""

    def cell(project: str | None, item: str, nanos: int) -> CostCell:
        return CostCell(0, {"project_id": project, "line_item": item}, nanos, 1.0)

    cells = [cell("a", "compute", 10), cell("b", "api output", 1000), cell(None, "idle compute", 7)]
    found = regroup(spread(cells), ["project_id", "line_item"])
    assert {(c.groups["project_id"], c.groups["line_item"]): c.amount_nanos for c in found} == {
        ("a", "compute"): 10,
        ("a", "idle compute"): 7,
        ("b", "api output"): 1000,
    }
