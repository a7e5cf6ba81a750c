"""Meters of one process. Nothing here waits, so every verb is one moment; not for several threads.

A call costs as much as it names meters. Buckets that are full again, gauges nobody holds and budgets untouched for
a day are forgotten, a few at each reservation.
"""

from __future__ import annotations

import heapq
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stoa.tenancy.meters.interface import (
    FADED,
    FORGET_SPENT_S,
    REMEMBER_SETTLED_S,
    TOKEN,
    Gauge,
    Hold,
    Level,
    Mark,
    Meter,
    Rate,
    Refused,
    Spend,
)


@dataclass(slots=True)
class _Bucket:
    """`used` units have not flowed off at `at_ms`; `share` of what was in it when the era began is still there."""

    at_ms: int
    era: int
    per_minute: int
    used: int = 0
    share: float = 1.0

    def flow(self, now_ms: int) -> None:
        """To now, at the limit of last time."""
        gone = (now_ms - self.at_ms) * self.per_minute
        if gone > 0 and self.used > 0:
            left = self.used - gone
            self.share = self.share * (left / self.used) if left > 0 else 0.0
            self.used = max(0, left)
        if self.used == 0 or self.share < FADED:
            self.era, self.share = max(now_ms, self.era), 1.0
        self.at_ms = max(now_ms, self.at_ms)


@dataclass(slots=True)
class _Purse:
    """Of one budget; `spent` None: not known."""

    touched_ms: int
    spent: int | None = None
    held: int = 0


@dataclass(slots=True)
class _Open:
    hold: Hold
    until_ms: int


class MemoryMeters:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, not going backwards."""
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._gauges: dict[str, int] = {}
        self._purses: OrderedDict[str, _Purse] = OrderedDict()
        self._open: dict[str, _Open] = {}  # counted in gauges and purses
        self._leases: list[tuple[int, str]] = []  # heap; at least one entry for each open hold
        self._settled: set[str] = set()
        self._settled_order: deque[tuple[int, str]] = deque()
        self._prefix, self._count = secrets.token_hex(6), 0

    def __len__(self) -> int:
        """Things remembered, for tests of leaks."""
        return len(self._buckets) + len(self._gauges) + len(self._purses) + len(self._open)

    async def reserve(self, wanted: Sequence[Meter], *, lease_s: float) -> Hold | Refused:
        now_ms = int(self._clock() * 1000)
        self._tidy(now_ms)
        refusals = [found for meter in wanted if (found := self._look(meter, now_ms)) is not None]
        if refusals:
            return self._refuse(refusals, wanted)
        self._count += 1
        marks = tuple([self._take(meter) for meter in wanted])
        levels = tuple([self._level(meter) for meter in wanted])
        hold = Hold(f"{self._prefix}{self._count:x}", tuple(wanted), levels, marks)
        self._lend(hold, now_ms + int(lease_s * 1000))
        return hold

    async def settle(self, hold: Hold, used: Mapping[str, int]) -> dict[str, int]:
        now_ms = int(self._clock() * 1000)
        if hold.id in self._settled:
            return {}
        self._settled.add(hold.id)
        self._settled_order.append((now_ms, hold.id))
        if self._open.pop(hold.id, None) is not None:
            self._release(hold)
        spent: dict[str, int] = {}
        for meter, mark in zip(hold.meters, hold.marks, strict=True):
            amount = used.get(meter.name, 0)
            if isinstance(meter, Rate):
                assert mark is not None
                self._correct(meter, mark, amount, now_ms)
            elif isinstance(meter, Spend):
                purse = self._purses.get(meter.name)
                if purse is not None and purse.spent is not None:
                    purse.spent += amount
                    purse.touched_ms = now_ms
                    spent[meter.name] = purse.spent
        return spent

    async def renew(self, holds: Sequence[Hold], *, lease_s: float) -> None:
        now_ms = int(self._clock() * 1000)
        self._expire(now_ms)
        for hold in holds:
            if hold.id in self._settled:
                continue
            if hold.id not in self._open:
                for meter in hold.meters:
                    if not isinstance(meter, Rate):
                        self._take(meter)
            self._lend(hold, now_ms + int(lease_s * 1000))

    async def seed(self, name: str, spent_nanos: int) -> bool:
        purse = self._purse(name)
        purse.touched_ms = int(self._clock() * 1000)
        if purse.spent is not None:
            return False
        purse.spent = spent_nanos
        return True

    async def known(self, name: str) -> bool:
        purse = self._purses.get(name)
        return purse is not None and purse.spent is not None

    async def close(self) -> None:
        """Nothing to close."""

    # -- looking

    def _look(self, meter: Meter, now_ms: int) -> Refused | None:
        """None: there is room."""
        if isinstance(meter, Rate):
            bucket = self._bucket(meter, now_ms)
            bucket.per_minute = meter.per_minute
            if bucket.used + meter.take * TOKEN <= meter.per_minute * TOKEN:
                return None
            return Refused(meter, -(-bucket.used // TOKEN), never=meter.take > meter.per_minute)
        if isinstance(meter, Gauge):
            holders = self._gauges.get(meter.name, 0)
            return None if holders < meter.limit else Refused(meter, holders, never=meter.limit < 1)
        purse = self._purse(meter.name)
        purse.touched_ms = now_ms
        if purse.spent is None:
            return Refused(meter, unknown=True)
        used = purse.spent + purse.held
        if meter.limit_nanos is None or used + meter.take <= meter.limit_nanos:
            return None
        return Refused(meter, used, never=meter.take > meter.limit_nanos)

    def _refuse(self, refusals: list[Refused], wanted: Sequence[Meter]) -> Refused:
        """The one that is told, with the time until all rates have room."""
        told = next((found for found in refusals if found.never), refusals[0])
        if told.never or not isinstance(told.meter, Rate):
            return told
        wait_ms = 0
        for meter in wanted:
            if isinstance(meter, Rate) and meter.per_minute > 0:
                over = self._buckets[meter.name].used + (meter.take - meter.per_minute) * TOKEN
                wait_ms = max(wait_ms, -(-over // meter.per_minute))
        return Refused(told.meter, told.used, wait_ms / 1000)

    def _level(self, meter: Meter) -> Level:
        if isinstance(meter, Rate):
            used = self._buckets[meter.name].used
            remaining = max(0, meter.per_minute - -(-used // TOKEN))
            return Level(meter.per_minute, remaining, -(-used // max(1, meter.per_minute)) / 1000)
        if isinstance(meter, Gauge):
            return Level(meter.limit, max(0, meter.limit - self._gauges.get(meter.name, 0)))
        if meter.limit_nanos is None:
            return Level(None, None)
        purse = self._purses[meter.name]
        return Level(meter.limit_nanos, max(0, meter.limit_nanos - (purse.spent or 0) - purse.held))

    # -- taking and giving back

    def _take(self, meter: Meter) -> Mark | None:
        if isinstance(meter, Rate):
            bucket = self._buckets[meter.name]
            bucket.used += meter.take * TOKEN
            return Mark(bucket.era, bucket.share)
        if isinstance(meter, Gauge):
            self._gauges[meter.name] = self._gauges.get(meter.name, 0) + 1
        else:
            self._purse(meter.name).held += meter.take
        return None

    def _correct(self, rate: Rate, mark: Mark, amount: int, now_ms: int) -> None:
        bucket = self._bucket(rate, now_ms)
        more = (amount - rate.take) * TOKEN
        if more > 0:
            bucket.used += more
        elif more < 0 and bucket.era == mark.era:
            bucket.used -= min(bucket.used, int(-more * (bucket.share / mark.share)))

    def _lend(self, hold: Hold, until_ms: int) -> None:
        """Only what must be freed some day has a lease."""
        if any(not isinstance(meter, Rate) for meter in hold.meters):
            self._open[hold.id] = _Open(hold, until_ms)
            heapq.heappush(self._leases, (until_ms, hold.id))

    def _release(self, hold: Hold) -> None:
        for meter in hold.meters:
            if isinstance(meter, Gauge):
                left = self._gauges[meter.name] - 1
                if left:
                    self._gauges[meter.name] = left
                else:
                    del self._gauges[meter.name]
            elif isinstance(meter, Spend):
                self._purse(meter.name).held -= meter.take

    def _bucket(self, rate: Rate, now_ms: int) -> _Bucket:
        bucket = self._buckets.get(rate.name)
        if bucket is None:
            bucket = self._buckets[rate.name] = _Bucket(now_ms, now_ms, rate.per_minute)
        bucket.flow(now_ms)
        return bucket

    def _purse(self, name: str) -> _Purse:
        purse = self._purses.get(name)
        if purse is None:
            purse = self._purses[name] = _Purse(int(self._clock() * 1000))
        return purse

    # -- forgetting

    def _expire(self, now_ms: int) -> None:
        while self._leases and self._leases[0][0] <= now_ms:
            _, hold_id = heapq.heappop(self._leases)
            found = self._open.get(hold_id)
            if found is not None and found.until_ms <= now_ms:
                del self._open[hold_id]
                self._release(found.hold)

    def _tidy(self, now_ms: int) -> None:
        """Ends leases that ran out; looks at more old things than one request can add."""
        self._expire(now_ms)
        while self._settled_order and self._settled_order[0][0] < now_ms - REMEMBER_SETTLED_S * 1000:
            self._settled.discard(self._settled_order.popleft()[1])
        for _ in range(min(5, len(self._buckets))):
            name, bucket = self._buckets.popitem(last=False)
            if bucket.used > (now_ms - bucket.at_ms) * bucket.per_minute:
                self._buckets[name] = bucket  # looked at again when its turn comes
        for _ in range(min(2, len(self._purses))):
            name, purse = self._purses.popitem(last=False)
            if purse.held or purse.touched_ms > now_ms - FORGET_SPENT_S * 1000:
                self._purses[name] = purse
