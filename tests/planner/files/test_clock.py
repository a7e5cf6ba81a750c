"""Typical days on the local clock."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.errors import ConfigError
from stoa.planner.files.clock import (
    Clock,
    Start,
    assumed_start,
    quarters,
    read_clock,
    read_start,
    read_zone,
)
from stoa.planner.files.document import Day, Periods, Span

BERLIN = ZoneInfo("Europe/Berlin")
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri")


def seconds_by_period(clock: Clock, start: Start, duration_s: float) -> list[float]:
    found = quarters(clock, start, 0.0, duration_s)
    return np.bincount(found.period, found.seconds, len(clock.periods)).tolist()


@pytest.mark.parametrize(
    ("periods", "count", "first"),
    [
        (Periods(kind="flat"), 1, ("always", 24, 30)),
        (Periods(), 24, ("00:00-01:00", 1, 30)),
        (Periods(step=6, horizon="1 w"), 4, ("00:00-06:00", 6, 7)),
        (Periods(kind="week", step=12, horizon="70 d"), 4, ("weekday 00:00-12:00", 12, 50)),
    ],
)
def test_periods_of_any_kind_fill_the_horizon(
    periods: Periods, count: int, first: tuple[str, float, float]
) -> None:
    """A typical day's hours come once a day; a weekday's, five days of seven."""
    clock = read_clock(periods, "UTC")
    assert len(clock.periods) == count
    assert (clock.periods[0].name, clock.periods[0].hours, clock.periods[0].times) == first
    horizon_h = {"30 d": 720, "1 w": 168, "70 d": 1680}[str(periods.horizon)]
    assert sum(p.hours * p.times for p in clock.periods) == pytest.approx(horizon_h)


def test_spans_take_hours_of_some_days() -> None:
    """Office hours, and all the rest."""
    spans = (
        Span(name="office", hours=("8-18",), days=DAYS),
        Span(name="night", hours=("0-8", "18-24"), days=DAYS),
        Span(name="weekend", days=("sat", "sun")),
    )
    clock = read_clock(Periods(kind="spans", span=spans, horizon="7 d"), "UTC")
    assert [(p.name, p.hours, p.times) for p in clock.periods] == [
        ("office", 10, 5),
        ("night", 14, 5),
        ("weekend", 24, 2),
    ]
    assert clock.index[0].tolist() == [1] * 8 + [0] * 10 + [1] * 6
    assert clock.index[6].tolist() == [2] * 24


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ((Span(name="a"), Span(name="b", hours=("3-4",))), r"span\[1\]: b and a share hours"),
        ((Span(name="a", hours=("0-23",)),), "mon 23:00-24:00 is in no span"),
        ((Span(name="a", hours=("18-8",)),), "'18-8'; accepted: whole hours"),
        ((Span(name="a", hours=("all day",)),), "'all day'"),
        ((Span(name="a", days=()),), "has no hours"),
        ((), 'goes with kind = "spans"'),
    ],
)
def test_spans_that_overlap_or_leave_gaps_are_refused(spans: tuple[Span, ...], says: str) -> None:
    """Every hour of the week is in one period."""
    with pytest.raises(ConfigError, match=says):
        read_clock(Periods(kind="spans", span=spans), "UTC")


def test_an_unknown_time_zone_is_refused() -> None:
    """With what would be accepted."""
    for name in ("Mars/Olympus", "", "../etc"):
        with pytest.raises(ConfigError, match="accepted: an IANA name"):
            read_zone(name, "time_zone")


def test_hours_are_those_of_the_local_clock() -> None:
    """In summer midnight UTC is two in Berlin; in October one hour comes twice, in March one not at all."""
    clock = read_clock(Periods(), "Europe/Berlin")
    summer = seconds_by_period(clock, Start(datetime(2024, 7, 1, tzinfo=UTC)), 3600)
    assert np.flatnonzero(summer).tolist() == [2]
    autumn = seconds_by_period(clock, Start(datetime(2024, 10, 27, tzinfo=BERLIN)), 25 * 3600)
    assert autumn[2] == 7200
    assert sum(autumn) == 25 * 3600
    spring = seconds_by_period(clock, Start(datetime(2024, 3, 31, tzinfo=BERLIN)), 23 * 3600)
    assert spring[2] == 0
    assert set(spring[3:]) == {3600.0}


def test_zones_a_quarter_of_an_hour_apart_are_told_apart() -> None:
    """Kathmandu is 5:45 before UTC."""
    clock = read_clock(Periods(), "Asia/Kathmandu")
    found = seconds_by_period(clock, Start(datetime(2024, 1, 1, tzinfo=UTC)), 3600)
    assert (found[5], found[6]) == (900, 2700)


def test_a_trace_without_dates_begins_on_a_monday() -> None:
    """At midnight, on the local clock."""
    clock = read_clock(Periods(kind="week", step=24), "Asia/Tokyo")
    assert assumed_start(clock).assumed
    assert seconds_by_period(clock, assumed_start(clock), 7 * 86400) == [5 * 86400, 2 * 86400]


def test_a_start_is_in_its_zone_unless_it_says_otherwise() -> None:
    """A date alone is midnight."""
    assert read_start("2024-05-06", BERLIN).at == datetime(2024, 5, 5, 22, tzinfo=UTC)
    assert read_start("2024-05-06T08:00+00:00", BERLIN).at == datetime(2024, 5, 6, 8, tzinfo=UTC)
    with pytest.raises(ConfigError, match="'yesterday'; accepted: a date"):
        read_start("yesterday", BERLIN)


@given(
    begin_s=st.integers(0, 10**5),
    length_s=st.integers(1, 3 * 10**5),
    start_s=st.integers(0, 10**5),
    arrival=st.sampled_from([0.0, 0.25, 0.5, 0.999]),
)
def test_quarters_cover_a_trace_once(begin_s: float, length_s: float, start_s: float, arrival: float) -> None:
    """Their seconds sum to its length, and every arrival is in one of them."""
    clock = read_clock(Periods(), "Europe/Berlin")
    start = Start(datetime.fromtimestamp(1.7e9 + start_s, UTC))
    found = quarters(clock, start, begin_s, begin_s + length_s)
    assert found.seconds.sum() == pytest.approx(length_s, rel=1e-9)
    (place,) = found.of(np.array([begin_s + arrival * length_s]))
    assert 0 <= place < len(found.period)
    moment_s = start.at.timestamp() + begin_s + arrival * length_s
    around = (datetime.fromtimestamp(moment_s + beside_s, BERLIN) for beside_s in (-1e-3, 1e-3))
    assert found.period[place] in {moment.hour for moment in around}
