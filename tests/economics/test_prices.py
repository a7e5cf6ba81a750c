"""Prices: exact, without gap or overlap, all of a file or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.economics.money import format_usd, parse_usd
from stoa.economics.prices import DEFAULT_CORE_HOUR_NANOS, PriceBook, parse_time
from stoa.errors import InvalidPrice
from stoa.storage.database import Database

HEAD = "item,unit,amount,currency,valid_from,valid_to\n"


@pytest.fixture
def book(database: Database) -> PriceBook:
    return PriceBook(database, clock=lambda: 1_800_000_000.5)


@pytest.mark.parametrize(
    ("amount", "nanos"),
    [("2.35", 2_350_000_000), (2.35, 2_350_000_000), (3, 3_000_000_000), ("1e-9", 1), ("0", 0), (" 1 ", 10**9)],
)  # fmt: skip
def test_amounts_are_exact(amount: str | float, nanos: int) -> None:
    """Decimal text and whole numbers, and floats that say what they mean."""
    assert parse_usd(amount) == nanos


@pytest.mark.parametrize(
    "amount", [0.1 + 0.2, "1e-10", "-1", -0.5, "NaN", float("nan"), "inf", "", "2,35", "$2", "1e10", True]
)
def test_other_amounts_are_refused(amount: str | float) -> None:
    """Negative, not a number, too large, or finer than a nano-dollar."""
    with pytest.raises(InvalidPrice):
        parse_usd(amount)


@given(st.integers(0, 10**18))
def test_dollars_there_and_back(nanos: int) -> None:
    """What is printed is what is meant."""
    assert parse_usd(format_usd(nanos)) == nanos


async def test_a_new_price_ends_the_one_before(book: PriceBook) -> None:
    """Each moment has one price; now is the default."""
    await book.set_price("machine:h100", "2.00", 1000)
    await book.set_price("machine:h100", "3.00")
    assert await book.at("machine:h100", 999) is None
    assert await book.at("machine:h100", 1000) == await book.at("machine:h100", 1_799_999_999) == 2 * 10**9
    assert await book.at("machine:h100", 1_800_000_000) == 3 * 10**9


async def test_overlaps_and_gaps_are_refused(book: PriceBook) -> None:
    """A price may neither begin before another of its item nor leave a time without one."""
    await book.load_csv(HEAD + "energy,kWh,0.30,USD,2026-01-01,2026-02-01\n")
    with pytest.raises(InvalidPrice, match="gap from 2026-02-01 to 2026-03-01"):
        await book.set_price("energy", "0.31", parse_time("2026-03-01"))
    for start in ("2025-01-01", "2026-01-01"):
        with pytest.raises(InvalidPrice, match="overlaps"):
            await book.set_price("energy", "0.31", parse_time(start))
    with pytest.raises(InvalidPrice, match="overlap from 2026-01-15 to 2026-02-01"):
        await book.set_price("energy", "0.31", parse_time("2026-01-15"))
    await book.set_price("energy", "0.31", parse_time("2026-02-01"))


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("energy,kWh,0.3,EUR,,\n", "line 2: the currency is 'EUR'"),
        ("energy,hour,0.3,USD,,\n", "line 2: the unit of energy is 'kWh'"),
        ("coffee,cup,0.3,USD,,\n", "line 2: there is no item 'coffee'"),
        ("energy,kWh,-1,USD,,\n", "line 2: the amount is '-1'"),
        ("energy,kWh,0.3,USD,yesterday,\n", "line 2: 'yesterday' is no time"),
        ("energy,kWh,0.3,USD,2026-02-01,2026-01-01\n", "line 2: valid_to"),
        ("energy,kWh,0.3\n", "line 2: the row has not 6 fields"),
        ("energy,kWh,1,USD,2026-01-01,2026-02-01\nenergy,kWh,1,USD,2026-02-02,\n", "gap from 2026-02-01 to 2026-02-02"),
        ("energy,kWh,1,USD,2026-01-01,2026-02-02\nenergy,kWh,1,USD,2026-02-01,\n", "overlap from 2026-02-01 to 2026-02-02"),
        ("", "no prices"),
    ],
)  # fmt: skip
async def test_a_bad_file_changes_nothing(book: PriceBook, rows: str, names: str) -> None:
    """The good rows beside the bad one are not kept either."""
    with pytest.raises(InvalidPrice, match=names):
        await book.load_csv(HEAD + rows + ("machine:a,hour,1,USD,,\n" if rows else ""))
    assert list(await book.table()) == []


async def test_a_good_file_is_loaded(book: PriceBook) -> None:
    """An open price is ended by the next row of its item, whatever the order of rows; a byte-order mark is no harm."""
    text = "machine:a,hour,2,usd,2026-02-01,\nmachine:a,hour,1,USD,,\napi:gpt-x:input,1M tokens,2.5,USD,,\n"
    assert await book.load_csv("\ufeff" + HEAD + text) == 3
    assert [(s.item, s.valid_from_s, s.valid_to_s) for s in await book.table()] == [
        ("api:gpt-x:input", 0, None),
        ("machine:a", 0, parse_time("2026-02-01")),
        ("machine:a", parse_time("2026-02-01"), None),
    ]


async def test_nothing_is_free_by_default(book: PriceBook) -> None:
    """A machine without a price has the assumed one, once; a price of one's own takes its place."""
    await book.seed(4)
    await book.seed(64)
    assert await book.at("machine:default", 0) == 4 * DEFAULT_CORE_HOUR_NANOS
    await book.set_price("machine:default", "1.5")
    await book.seed(4)
    assert (await book.table()).hourly_nanos("anything", 0, 1_800_000_001) == 1_500_000_000
