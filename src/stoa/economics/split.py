"""How a price becomes shares. Integers in, integers out; nothing is made or lost by rounding.

A node costs `rate` nano-dollars per hour. Of a stretch of time it owes floor(rate x (end - origin)) -
floor(rate x (start - origin)): stretches that follow each other add up to the price of the whole. The memory
share φ of that is divided by byte-milliseconds of the pool, the rest by nanoseconds of compute; what nobody used
is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stoa.economics.accounts import Account, parse_account
from stoa.economics.prices import PriceTable
from stoa.engine.usage import AccountLine, Interval

HOUR_NS = 3600 * 10**9
SECOND_NS = 10**9
PPM = 10**6

LineItem = Literal["compute", "memory", "idle compute", "idle memory", "lost"]
LINE_ITEMS: tuple[LineItem, ...] = ("compute", "memory", "idle compute", "idle memory", "lost")


@dataclass(frozen=True)
class Segment:
    """Time at one rate. `rate_nanos` per hour holds from `origin_ns` on, at or before `start_ns`."""

    origin_ns: int
    start_ns: int
    end_ns: int
    rate_nanos: int

    @property
    def total_nanos(self) -> int:
        def until(t_ns: int) -> int:
            return self.rate_nanos * (t_ns - self.origin_ns) // HOUR_NS

        return until(self.end_ns) - until(self.start_ns)


@dataclass(frozen=True)
class Entry:
    """A part of a segment's total. `account` None: nobody's. `quantity` in ns, or byte-ms for memory."""

    account: Account | None
    line_item: LineItem
    amount_nanos: int
    quantity: int
    start_s: int


def split(total: int, weights: Sequence[int]) -> list[int]:
    """`total` >= 0 in proportion to `weights` >= 0, exactly: the result sums to `total` (Hamilton's method: each
    gets its quota rounded down, the largest remainders one more, the first of equals first). No weight above 0:
    the first gets all. ValueError without weights."""
    if not weights:
        raise ValueError("nobody to split among")
    whole = sum(weights)
    if whole == 0:
        return [total, *[0] * (len(weights) - 1)]
    shares = [total * w // whole for w in weights]
    left = total - sum(shares)
    if left:
        by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
        for i in by_remainder[:left]:
            shares[i] += 1
    return shares


def segments(
    prices: PriceTable, machine: str, milliwatts: int, origin_ns: int, start_ns: int, end_ns: int
) -> list[Segment]:
    """[start_ns, end_ns) cut where the hourly price changes. A new rate counts from where it began."""
    times = prices.changes(machine, origin_ns // SECOND_NS, -(-end_ns // SECOND_NS))
    edges = [origin_ns, *[t * SECOND_NS for t in times if origin_ns < t * SECOND_NS < end_ns], end_ns]
    found: list[Segment] = []
    rate, origin = None, origin_ns
    for low, high in pairwise(edges):
        here = prices.hourly_nanos(machine, milliwatts, low // SECOND_NS)
        if here != rate:
            rate, origin = here, low
        if high > start_ns:
            found.append(Segment(origin, max(low, start_ns), high, here))
    return found


def divide_used(segment: Segment, interval: Interval, memory_ppm: int) -> list[Entry]:
    """The segment's total among the interval's lines and idle, in proportion to what the interval used; a segment
    that is part of the interval gets its part of the quantities. Sums to `segment.total_nanos`."""
    span_ns = interval.end_ns - interval.start_ns
    part = (segment.start_ns - interval.start_ns, segment.end_ns - interval.start_ns)
    memory_nanos, compute_nanos = split(segment.total_nanos, [memory_ppm, PPM - memory_ppm])
    busy_ns = sum(line.compute_ns for line in interval.lines)
    byte_ms = sum(_held(line) for line in interval.lines)
    pool_byte_ms = interval.pool_bytes * span_ns // 10**6
    compute = [line.compute_ns for line in interval.lines] + [max(span_ns - busy_ns, 0)]
    memory = [_held(line) for line in interval.lines] + [max(pool_byte_ms - byte_ms, 0)]
    accounts = [parse_account(line.account) for line in interval.lines]
    found: list[Entry] = []
    kinds: tuple[tuple[LineItem, LineItem, int, list[int]], ...] = (
        ("compute", "idle compute", compute_nanos, compute),
        ("memory", "idle memory", memory_nanos, memory),
    )
    for used, idle, nanos, weights in kinds:
        # Rounded down idle first: with no weight at all, all of it is idle.
        shares = split(nanos, [weights[-1], *weights[:-1]])
        owners = [(None, idle, weights[-1]), *((a, used, w) for a, w in zip(accounts, weights, strict=False))]
        for (account, item, weight), share in zip(owners, shares, strict=True):
            quantity = _part(weight, part, span_ns)
            if share or quantity:
                found.append(Entry(account, item, share, quantity, segment.start_ns // SECOND_NS))
    return found


def divide_lost(segment: Segment) -> list[Entry]:
    """All of it to nobody."""
    quantity = segment.end_ns - segment.start_ns
    return [Entry(None, "lost", segment.total_nanos, quantity, segment.start_ns // SECOND_NS)]


def _held(line: AccountLine) -> int:
    return line.kv_byte_ms + line.adapter_byte_ms


def _part(quantity: int, part: tuple[int, int], span: int) -> int:
    """Of `quantity` spread evenly over `span`, what falls in [part[0], part[1]); parts add up to the whole."""
    return quantity * part[1] // span - quantity * part[0] // span
