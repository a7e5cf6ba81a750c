"""What another provider takes for a request, by the items api:<model>:input, :cached and :output.

cost = (input - cached) x input price + cached x cached price + output x output price, per million tokens, rounded up
once; the three parts sum to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from stoa.economics.prices import PriceBook, PriceTable
from stoa.economics.split import split
from stoa.errors import DatabaseUnavailable

log = structlog.get_logger("stoa.ledger")
MILLION = 10**6


@dataclass(frozen=True)
class ApiPrice:
    """Nano-dollars per million tokens."""

    input_nanos: int
    cached_nanos: int
    output_nanos: int

    @property
    def is_free(self) -> bool:
        return not (self.input_nanos or self.cached_nanos or self.output_nanos)

    def most_nanos(self, input_tokens: int, output_tokens: int) -> int:
        """An upper bound for a request of that size: nothing cached, or all of it if that is dearer."""
        dearest = max(self.input_nanos, self.cached_nanos)
        return -(-(dearest * input_tokens + self.output_nanos * output_tokens) // MILLION)


class Parts(NamedTuple):
    """Nano-dollars of one request by what they were for."""

    input_nanos: int
    cached_nanos: int
    output_nanos: int

    @property
    def total_nanos(self) -> int:
        return sum(self)


class Purchase(NamedTuple):
    """What a remote took for one request. `model` is the remote's name of it; `input_tokens` include the cached ones.
    `estimated`: the remote has not said how many tokens there were; they are counted here."""

    remote: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    parts: Parts
    at_s: int
    estimated: bool = False


def priced(price: ApiPrice, input_tokens: int, cached_tokens: int, output_tokens: int) -> Parts:
    """The cost of a request, rounded up to a nano-dollar, in parts by largest remainder. `cached_tokens` are among
    `input_tokens`; what a remote reports beyond them counts as all of them."""
    cached = min(max(cached_tokens, 0), max(input_tokens, 0))
    amounts = (
        price.input_nanos * (max(input_tokens, 0) - cached),
        price.cached_nanos * cached,
        price.output_nanos * max(output_tokens, 0),
    )
    return Parts(*split(-(-sum(amounts) // MILLION), amounts))


def api_price(table: PriceTable, model: str, at_s: int, otherwise: ApiPrice) -> ApiPrice:
    """The table's prices of the model at that time; of what it does not name, `otherwise`'s. Cached tokens without a
    price of their own cost what the table says of input."""
    named = {kind: table.at(f"api:{model}:{kind}", at_s) for kind in ("input", "cached", "output")}
    if named["cached"] is None:
        named["cached"] = named["input"]
    return ApiPrice(
        otherwise.input_nanos if named["input"] is None else named["input"],
        otherwise.cached_nanos if named["cached"] is None else named["cached"],
        otherwise.output_nanos if named["output"] is None else named["output"],
    )


class ApiPrices:
    """The table of prices as it was read lately: who asks what a request costs waits for no database."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._table = PriceTable()

    async def refresh(self) -> None:
        """Raises DatabaseUnavailable."""
        self._table = await self._book.table()

    async def run(self, pause_s: float = 30.0) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.refresh()
            except DatabaseUnavailable as error:
                log.warning("prices cannot be read; the last ones hold", error=error.message)
            await asyncio.sleep(pause_s)

    def of(self, model: str, at_s: int, otherwise: ApiPrice) -> ApiPrice:
        return api_price(self._table, model, at_s, otherwise)
