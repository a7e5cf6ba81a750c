"""Typical days: which period an hour of a weekday belongs to, on the local clock, summer time or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError
from stoa.planner.files import units
from stoa.planner.files.document import Periods, Span
from stoa.planner.problem import Period

Numbers = NDArray[np.int32]
QUARTER_S = 900.0  # clocks of all zones change, and differ, by quarters of an hour
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"\s*(\d{1,2})(?::00)?\s*-\s*(\d{1,2})(?::00)?\s*")
_MONDAY = (2024, 1, 1)  # a Monday far from any change of clocks, for traces without dates


@dataclass(frozen=True, slots=True)
class Start:
    """Second 0 of a trace. `wall`: its times are read off the clock of `at`'s zone, so an hour that the clock skips or
    repeats is not in them; otherwise they are seconds that have passed."""

    at: datetime
    wall: bool = False
    assumed: bool = False  # the trace does not say


@dataclass(frozen=True, slots=True)
class Clock:
    """`index` [7, 24]: the period of each weekday's hours, Monday's first."""

    zone: ZoneInfo
    periods: tuple[Period, ...]
    index: Numbers


@dataclass(frozen=True, slots=True)
class Quarters:
    """Quarters of an hour of a trace, the first one with its second `begin_s`: their periods, and their days as numbers.
    `offset_s`: of the quarter that second 0 is in have passed before it."""

    first: int
    offset_s: float
    period: Numbers
    day: Numbers
    seconds: NDArray[np.float64]  # of each that the trace covers

    def of(self, arrival_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which quarter each arrival is in."""
        return ((arrival_s + self.offset_s) // QUARTER_S).astype(np.int64) - self.first

    def period_of(self, arrival_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which period; before and after the trace that of its ends."""
        return self.period[np.clip(self.of(arrival_s), 0, len(self.period) - 1)].astype(np.int64)


def read_zone(name: str, at: str) -> ZoneInfo:
    """ConfigError for a name that is in no database of time zones."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(
            f"{at}: there is no time zone {name!r}; accepted: an IANA name such as UTC or Europe/Berlin "
            "(if none is known here: pip install tzdata)",
            param=at,
        ) from None


def read_clock(periods: Periods, time_zone: str) -> Clock:
    """ConfigError for spans that overlap or leave an hour out, and for hours that are none."""
    zone = read_zone(time_zone, "time_zone")
    days = units.hours(periods.horizon, "periods.horizon") / 24
    if days <= 0:
        raise ConfigError("periods.horizon is 0; accepted: a time such as 30 d", param="periods.horizon")
    if (periods.kind == "spans") != bool(periods.span):
        raise ConfigError(
            'periods.span goes with kind = "spans", and with nothing else', param="periods.span"
        )
    made, index = _spans(periods.span, days) if periods.span else _typical(periods, days)
    return Clock(zone, made, index)


def _typical(periods: Periods, days: float) -> tuple[tuple[Period, ...], Numbers]:
    step = 24 if periods.kind == "flat" else periods.step
    hours = np.arange(24, dtype=np.int32) // step
    if periods.kind != "week":
        names = ["always"] if periods.kind == "flat" else [_hours(h, step) for h in range(0, 24, step)]
        return tuple(Period(name, step, days) for name in names), np.tile(hours, (7, 1))
    made = [
        Period(f"{kind} {_hours(h, step)}", step, days * share)
        for kind, share in (("weekday", 5 / 7), ("weekend", 2 / 7))
        for h in range(0, 24, step)
    ]
    return tuple(made), np.stack([hours] * 5 + [hours + 24 // step] * 2)


def _hours(first: int, count: int) -> str:
    return f"{first:02d}:00-{first + count:02d}:00"


def _spans(spans: tuple[Span, ...], days: float) -> tuple[tuple[Period, ...], Numbers]:
    index = np.full((7, 24), -1, np.int32)
    made = []
    for number, span in enumerate(spans):
        at = f"periods.span[{number}]"
        hours = sorted({h for text in span.hours for h in _hours_of(text, f"{at}.hours")})
        rows = sorted({_DAYS.index(day) for day in span.days})
        if not hours or not rows:
            raise ConfigError(f"{at} has no hours; accepted: hours and days", param=at)
        block = np.ix_(rows, hours)
        taken = index[block].max()
        if taken >= 0:
            raise ConfigError(f"{at}: {span.name} and {spans[taken].name} share hours", param=at)
        index[block] = number
        made.append(Period(span.name, len(hours), days * len(rows) / 7))
    if (index < 0).any():
        day, hour = np.argwhere(index < 0)[0]
        raise ConfigError(
            f"periods.span: {_DAYS[day]} {_hours(int(hour), 1)} is in no span; accepted: every hour of the week in one",
            param="periods.span",
        )
    return tuple(made), index


def _hours_of(text: str, at: str) -> range:
    match = _SPAN.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 <= first < last <= 24:
        raise ConfigError(f'{at}: {text!r}; accepted: whole hours such as "8-20", at most "0-24"', param=at)
    return range(first, last)


def read_start(text: str, zone: ZoneInfo) -> Start:
    """`demand.start`: a date, perhaps with a time, in `zone` unless it says otherwise. ConfigError for what is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"demand.start is {text!r}; accepted: a date such as 2024-05-06 or 2024-05-06T08:00+02:00",
            param="demand.start",
        ) from None
    if not 1970 <= at.year <= 2200:
        raise ConfigError(
            f"demand.start is {text!r}; accepted: a year from 1970 to 2200", param="demand.start"
        )
    return Start(at if at.tzinfo else at.replace(tzinfo=zone))


def assumed_start(clock: Clock) -> Start:
    """For traces without dates: midnight of a Monday, on the local clock."""
    return Start(datetime(*_MONDAY, tzinfo=clock.zone), assumed=True)


def quarters(clock: Clock, start: Start, begin_s: float, end_s: float) -> Quarters:
    """Of the stretch [begin_s, end_s) of a trace."""
    at = start.at
    offset_s = (at.minute * 60 + at.second + at.microsecond / 1e6) % QUARTER_S
    edges = np.arange(np.floor((begin_s + offset_s) / QUARTER_S), np.ceil((end_s + offset_s) / QUARTER_S) + 1)
    inside = np.clip(edges * QUARTER_S - offset_s, begin_s, end_s)
    origin = start.at if start.wall else start.at.astimezone(UTC)
    zero = origin - timedelta(seconds=offset_s)
    moments = [(zero + timedelta(seconds=float(q) * QUARTER_S)).astimezone(clock.zone) for q in edges[:-1]]
    period = [int(clock.index[m.weekday(), m.hour]) for m in moments]
    days = [m.toordinal() for m in moments]
    return Quarters(
        int(edges[0]), offset_s, np.array(period, np.int32), np.array(days, np.int32), np.diff(inside)
    )
