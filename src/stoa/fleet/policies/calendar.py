"""Which period of a week it is: local hours of weekdays, as a plan has them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import msgspec

from stoa.errors import ConfigError

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
DAY_MINUTES = 24 * 60
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")


class Span(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same hours of some weekdays: from `start` up to but without `end`, both HH:MM, 24:00 the latest."""

    days: tuple[Day, ...]
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class Calendar:
    """`starts`: minutes after Monday's midnight, in order, at which `periods` begin; the first is 0."""

    zone: tzinfo
    starts: tuple[int, ...]
    periods: tuple[int, ...]

    def at(self, unix_s: float) -> int:
        """Index of the period. Where clocks are turned back, its hours come twice; where they are set forward, they do not
        come."""
        local = datetime.fromtimestamp(unix_s, self.zone)
        minute = local.weekday() * DAY_MINUTES + local.hour * 60 + local.minute
        return self.periods[bisect_right(self.starts, minute) - 1]


def make_calendar(time_zone: str, names: Sequence[str], hours: Sequence[Sequence[Span]]) -> Calendar:
    """`hours` by period. ConfigError if the week's minutes are not each in exactly one of them."""
    pieces = sorted(
        (DAYS.index(day) * DAY_MINUTES + start, DAYS.index(day) * DAY_MINUTES + end, period)
        for period, spans in enumerate(hours)
        for span in spans
        for start, end in [_minutes(span, names[period])]
        for day in span.days
    )
    until = 0
    for start, end, _ in pieces:
        if start > until:
            raise ConfigError(
                f"periods: none is there from {_name(until)} to {_name(start)}", param="periods"
            )
        if start < until:
            both = " and ".join(names[p] for s, e, p in pieces if s <= start < e)
            raise ConfigError(f"periods: {_name(start)} is in several ({both})", param="periods")
        until = end
    if until < 7 * DAY_MINUTES:
        raise ConfigError(f"periods: none is there from {_name(until)} to the week's end", param="periods")
    return Calendar(_zone(time_zone), tuple(p[0] for p in pieces), tuple(p[2] for p in pieces))


def clock_time(minute: int) -> str:
    """HH:MM of a minute of the day."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _minutes(span: Span, name: str) -> tuple[int, int]:
    found = []
    for text in (span.start, span.end):
        if _TIME.fullmatch(text) is None:
            raise ConfigError(
                f"period {name}: {text!r} is no time; accepted: 00:00 to 24:00", param="periods"
            )
        found.append(int(text[:2]) * 60 + int(text[3:]))
    if found[0] >= found[1]:
        raise ConfigError(
            f"period {name}: {span.start} to {span.end} is no time; for hours past midnight give two spans",
            param="periods",
        )
    return found[0], found[1]


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # also where the machine has no table of time zones
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(
            f"time_zone is {name!r}, which this machine does not know; accepted: UTC, or a name such as Europe/Berlin",
            param="time_zone",
        ) from None


def _name(minute: int) -> str:
    return f"{DAYS[minute // DAY_MINUTES]} {clock_time(minute % DAY_MINUTES)}"
