"""What things cost, and from when to when.

    machine:<type>                     per hour of a node of that type
    energy                             per kWh; a node's share is its watts / 1000
    api:<model>:input|cached|output    per million tokens, what another provider takes

The prices of an item follow each other without gap or overlap: a new one ends the one before.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.money import parse_usd
from stoa.economics.tables import Price
from stoa.errors import InvalidPrice
from stoa.storage.database import Database

DEFAULT_MACHINE = "default"
DEFAULT_CORE_HOUR_NANOS = 50_000_000  # 0.05 USD: assumed, and to be replaced; not any provider's price
_ITEMS = (
    (re.compile(r"machine:[A-Za-z0-9._-]{1,128}"), "hour"),
    (re.compile(r"energy"), "kWh"),
    (re.compile(r"api:.{1,200}:(input|cached|output)"), "1M tokens"),
)
_COLUMNS = ["item", "unit", "amount", "currency", "valid_from", "valid_to"]
_LATEST_S = 253_402_300_799  # the last second of year 9999


@dataclass(frozen=True)
class PriceSpan:
    """`amount_nanos` per `unit` of `item` in [valid_from_s, valid_to_s); None: until further notice."""

    item: str
    unit: str
    amount_nanos: int
    valid_from_s: int
    valid_to_s: int | None = None
    note: str = ""

    def covers(self, t_s: int) -> bool:
        return self.valid_from_s <= t_s and (self.valid_to_s is None or t_s < self.valid_to_s)


class PriceTable:
    """All prices at one moment of reading; asks no database."""

    def __init__(self, spans: Iterable[PriceSpan] = ()) -> None:
        self._spans: dict[str, list[PriceSpan]] = {}
        for span in sorted(spans, key=lambda s: s.valid_from_s):
            self._spans.setdefault(span.item, []).append(span)

    def __iter__(self) -> Iterator[PriceSpan]:
        return (span for item in sorted(self._spans) for span in self._spans[item])

    def at(self, item: str, t_s: int) -> int | None:
        """Nano-dollars per unit at Unix time `t_s`; None: no price then."""
        return next((s.amount_nanos for s in self._spans.get(item, ()) if s.covers(t_s)), None)

    def hourly_nanos(self, machine: str, milliwatts: int, t_s: int) -> int:
        """Of a node: its machine's price (or machine:default's) + watts / 1000 x energy, rounded down."""
        price = self.at(f"machine:{machine}", t_s)
        if price is None:
            price = self.at(f"machine:{DEFAULT_MACHINE}", t_s) or 0
        return price + milliwatts * (self.at("energy", t_s) or 0) // 1_000_000

    def changes(self, machine: str, after_s: int, before_s: int) -> list[int]:
        """Times in (after_s, before_s), ascending, at which a node's hourly price may change."""
        times = {
            t
            for item in (f"machine:{machine}", f"machine:{DEFAULT_MACHINE}", "energy")
            for span in self._spans.get(item, ())
            for t in (span.valid_from_s, span.valid_to_s)
            if t is not None and after_s < t < before_s
        }
        return sorted(times)


class PriceBook:
    """The table of prices. Every change is one transaction: `set_price` and `load_csv` open their own, `put` runs
    in the caller's."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def set_price(
        self, item: str, amount: str | int | float, valid_from_s: int | None = None, note: str = ""
    ) -> PriceSpan:
        """From `valid_from_s` (now) on. Raises InvalidPrice, DatabaseUnavailable."""
        async with self._database.begin() as session:
            return await self.put(session, item, amount, valid_from_s, note)

    async def put(
        self,
        session: AsyncSession,
        item: str,
        amount: str | int | float,
        valid_from_s: int | None = None,
        note: str = "",
    ) -> PriceSpan:
        start_s = int(self._clock()) if valid_from_s is None else valid_from_s
        span = PriceSpan(item, unit_of(item), parse_usd(amount), start_s, None, note)
        await self._append(session, [span])
        return span

    async def load_csv(self, text: str) -> int:
        """Columns item, unit, amount, currency, valid_from, valid_to: all rows or none. How many there were."""
        spans = read_csv(text)
        async with self._database.begin() as session:
            await self._append(session, spans)
        return len(spans)

    async def seed(self, cores: int) -> None:
        """Gives machine:default a price, unless it has one, so that nothing is ever booked as free."""
        item = f"machine:{DEFAULT_MACHINE}"
        amount = DEFAULT_CORE_HOUR_NANOS * max(cores, 1)
        note = f"assumed: 0.05 USD per core-hour x {cores} cores; set your own"
        with suppress(InvalidPrice):  # another process was faster
            async with self._database.begin() as session:
                if not list(await read_table(session, [item])):
                    await self._append(session, [PriceSpan(item, "hour", amount, 0, None, note)])

    async def table(self) -> PriceTable:
        async with self._database.read() as session:
            return await read_table(session)

    async def at(self, item: str, t_s: int) -> int | None:
        """Nano-dollars per unit at `t_s`; None: no price then."""
        async with self._database.read() as session:
            return (await read_table(session, [item])).at(item, t_s)

    async def _append(self, session: AsyncSession, spans: Sequence[PriceSpan]) -> None:
        """Adds spans behind what their items have. The first statement writes, so two at once take turns."""
        items = sorted({s.item for s in spans})
        await session.execute(update(Price).where(Price.item.in_(items)).values(note=Price.note))
        rows = (await session.scalars(select(Price).where(Price.item.in_(items)))).all()
        last: dict[str, Price] = {r.item: r for r in sorted(rows, key=lambda r: r.valid_from_s)}
        for span in chained(spans):
            before = last.pop(span.item, None)
            if before is not None:
                _check_follows(_span(before), span)
                before.valid_to_s = span.valid_from_s
            session.add(_row(span, int(self._clock())))
        try:
            await session.flush()
        except IntegrityError:
            raise InvalidPrice(
                f"somebody else has just set a price of {', '.join(items)}; look again"
            ) from None


async def read_table(session: AsyncSession, items: Sequence[str] | None = None) -> PriceTable:
    """All prices, or those of `items`."""
    query = select(Price)
    if items is not None:
        query = query.where(Price.item.in_(items))
    return PriceTable(map(_span, await session.scalars(query)))


def unit_of(item: str) -> str:
    """What an amount is for. Raises InvalidPrice."""
    for pattern, unit in _ITEMS:
        if pattern.fullmatch(item):
            return unit
    raise InvalidPrice(
        f"there is no item {item[:80]!r}; accepted: machine:TYPE, energy, api:MODEL:input|cached|output",
        param="item",
    )


def chained(spans: Sequence[PriceSpan]) -> list[PriceSpan]:
    """By item and time, each open one ended by its successor. InvalidPrice names the first gap or overlap."""
    found: list[PriceSpan] = []
    ordered = sorted(spans, key=lambda s: (s.item, s.valid_from_s))
    for span, following in pairwise([*ordered, None]):
        assert span is not None
        if following is not None and following.item == span.item:
            _check_follows(span, following)
            span = replace(span, valid_to_s=following.valid_from_s)
        found.append(span)
    return found


def _check_follows(before: PriceSpan, after: PriceSpan) -> None:
    start, end = after.valid_from_s, before.valid_to_s
    if start <= before.valid_from_s:
        raise InvalidPrice(
            f"{after.item}: the price from {when(start)} overlaps the one from {when(before.valid_from_s)};"
            " a new price must begin later than all others",
            param="valid_from",
        )
    if end is not None and start != end:
        kind, low, high = ("overlap", start, end) if start < end else ("gap", end, start)
        raise InvalidPrice(
            f"{after.item}: {kind} from {when(low)} to {when(high)}; the next price must begin where the one before ends",
            param="valid_from",
        )


def read_csv(text: str) -> list[PriceSpan]:
    """InvalidPrice names the line."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    if reader.fieldnames is None or sorted(map(str.strip, reader.fieldnames)) != sorted(_COLUMNS):
        raise InvalidPrice(f"the columns are {reader.fieldnames}; accepted: {', '.join(_COLUMNS)}")
    reader.fieldnames = list(map(str.strip, reader.fieldnames))
    spans = []
    for row in reader:
        try:
            spans.append(_read_row(row))
        except InvalidPrice as error:
            raise InvalidPrice(f"line {reader.line_num}: {error.message}", param=error.param) from None
    if not spans:
        raise InvalidPrice("the file has no prices")
    chained(spans)
    return spans


def _read_row(row: dict[str, str | None]) -> PriceSpan:
    if None in row or None in row.values():
        raise InvalidPrice(f"the row has not {len(_COLUMNS)} fields")
    cells = {k: (v or "").strip() for k, v in row.items()}
    unit = unit_of(cells["item"])
    if cells["unit"] != unit:
        raise InvalidPrice(
            f"the unit of {cells['item']} is {unit!r}, not {cells['unit'][:80]!r}", param="unit"
        )
    if cells["currency"].upper() != "USD":
        raise InvalidPrice(f"the currency is {cells['currency'][:80]!r}; accepted: USD", param="currency")
    start = parse_time(cells["valid_from"]) if cells["valid_from"] else 0
    end = parse_time(cells["valid_to"]) if cells["valid_to"] else None
    if end is not None and end <= start:
        raise InvalidPrice("valid_to is not later than valid_from", param="valid_to")
    return PriceSpan(cells["item"], unit, parse_usd(cells["amount"]), start, end)


def parse_time(text: str) -> int:
    """Unix seconds of an ISO date or time, UTC unless it says otherwise, or of Unix seconds. Raises InvalidPrice."""
    try:
        if text.isascii() and text.isdigit() and len(text) != 8:
            found = int(text)
        else:
            parsed = datetime.fromisoformat(text)
            found = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        found = -1
    if not 0 <= found <= _LATEST_S:
        raise InvalidPrice(
            f"{text[:80]!r} is no time; accepted: 2026-01-31, 2026-01-31T12:00:00Z, Unix seconds",
            param="valid_from",
        )
    return found


def when(t_s: int) -> str:
    """2026-01-31, with the time of day where it is not midnight."""
    at = datetime.fromtimestamp(t_s, UTC)
    return f"{at:%Y-%m-%d}" if t_s % 86_400 == 0 else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _span(row: Price) -> PriceSpan:
    return PriceSpan(row.item, row.unit, row.amount_nanos, row.valid_from_s, row.valid_to_s, row.note)


def _row(span: PriceSpan, now_s: int) -> Price:
    return Price(
        item=span.item,
        unit=span.unit,
        amount_nanos=span.amount_nanos,
        valid_from_s=span.valid_from_s,
        valid_to_s=span.valid_to_s,
        note=span.note,
        created_at_s=now_s,
    )
