"""Every moment of a week is in exactly one period, in the plan's own time zone."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.errors import ConfigError
from stoa.fleet.policies.calendar import DAYS, Day, Span, make_calendar

WEEKDAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri")
WEEKEND: tuple[Day, ...] = ("sat", "sun")
BERLIN = "Europe/Berlin"
OFFICE = [
    [Span(days=WEEKDAYS, start="08:00", end="18:30")],
    [
        Span(days=WEEKDAYS, start="00:00", end="08:00"),
        Span(days=WEEKDAYS, start="18:30", end="24:00"),
        Span(days=WEEKEND, start="00:00", end="24:00"),
    ],
]


def unix_s(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("at", "period"),
    [
        ("2026-11-23T07:59", 1),
        ("2026-11-23T08:00", 0),  # a Monday
        ("2026-11-23T18:29:59", 0),
        ("2026-11-23T18:30", 1),
        ("2026-11-28T10:00", 1),
        ("2026-07-06T08:00", 0),  # in summer time
        ("2026-03-29T03:00", 1),  # the hour before does not exist
    ],
)
def test_hours_are_local(at: str, period: int) -> None:
    """Summer and winter begin at the same hours of the clock."""
    assert make_calendar(BERLIN, ["office", "rest"], OFFICE).at(unix_s(at)) == period


@given(cuts=st.sets(st.integers(1, 7 * 24 * 60 - 1), max_size=12), minute=st.integers(0, 7 * 24 * 60 - 1))
def test_each_minute_has_its_period(cuts: set[int], minute: int) -> None:
    """However a week is cut into periods."""
    edges = [0, *sorted(cuts), 7 * 24 * 60]
    hours = [_spans(a, b) for a, b in pairwise(edges)]
    calendar = make_calendar("UTC", [str(i) for i in range(len(hours))], hours)
    monday_s = datetime.fromisoformat("2026-11-23T00:00+00:00").timestamp()
    assert calendar.at(monday_s + 60 * minute) == sum(cut <= minute for cut in cuts)


def _spans(start: int, end: int) -> list[Span]:
    found = []
    for i, day in enumerate(DAYS):
        first, last = max(start, i * 1440), min(end, (i + 1) * 1440)
        if first < last:
            times = [f"{(t - i * 1440) // 60:02d}:{t % 60:02d}" for t in (first, last)]
            found.append(Span(days=(day,), start=times[0], end=times[1]))
    return found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"start": "09:00"}, "none is there from mon 08:00 to mon 09:00"),
        (
            {"start": "07:00"},
            r"mon 07:00 is in several \(office and rest|mon 07:00 is in several \(rest and office",
        ),
        ({"end": "8:30"}, "'8:30' is no time"),
        ({"end": "24:30"}, "'24:30' is no time"),
        ({"end": "06:00"}, "for hours past midnight give two spans"),
    ],
)
def test_gaps_and_overlaps_are_named(change: dict[str, str], why: str) -> None:
    """With the day and the hour."""
    day = {"start": "08:00", "end": "18:30"} | change
    with pytest.raises(ConfigError, match=why):
        make_calendar(BERLIN, ["office", "rest"], [[Span(days=WEEKDAYS, **day)], OFFICE[1]])


def test_time_zones_are_known_ones() -> None:
    """The message names one that is."""
    with pytest.raises(ConfigError, match=r"time_zone is 'Berlin'.*Europe/Berlin"):
        make_calendar("Berlin", ["office", "rest"], OFFICE)
