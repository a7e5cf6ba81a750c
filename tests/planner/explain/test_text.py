"""Numbers, lists and tables as people read them."""

from __future__ import annotations

import pytest

from stoa.planner.explain.text import amount, beginning, between, large, listed, percent, spans, table, usd

HOURS = [f"{h:02d}:00-{h + 1:02d}:00" for h in range(24)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (100.4, "100"), (12.3, "12.30"), (0.2, "0.20"), (0.0423, "0.042"), (1e-6, "0"), (0, "0"),
     (-150, "-150")],
)  # fmt: skip
def test_money_has_as_many_digits_as_are_worth_reading(value: float, text: str) -> None:
    """Thousands with commas, cents of small sums, two digits of prices below."""
    assert usd(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100 %"), (0.123, "12 %"), (0.0123, "1.2 %"), (0.0001, "below 0.1 %"), (0, "0 %")]
)
def test_shares_are_percentages(share: float, text: str) -> None:
    """A small share is not nothing."""
    assert percent(share) == text


def test_counts_and_ranges() -> None:
    """A range of one number is that number; large ones are told in words."""
    assert between(3, 3) == "3"
    assert between(0, 12) == "0 to 12"
    assert amount(12345) == "12,345"
    assert large(283e9) == "283 billion"
    assert large(1500) == "1,500"


@pytest.mark.parametrize(("words", "text"), [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b and c")])
def test_lists_end_with_and(words: list[str], text: str) -> None:
    """However many there are."""
    assert listed(words) == text


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (range(24), "always"),
        ([9], "09:00-10:00"),
        ([9, 10, 11, 12, 13], "09:00-14:00"),
        ([0, 1, 9, 10, 20], "00:00-02:00, 09:00-11:00 and 1 more"),
    ],
)
def test_hours_that_follow_each_other_are_one_span(chosen: list[int], text: str) -> None:
    """The two longest, in order, and how many more there are."""
    assert spans(HOURS, list(chosen)) == text


def test_spans_do_not_reach_from_weekdays_into_weekends() -> None:
    """Other names are told as they are."""
    week = [f"{kind} {hours}" for kind in ("weekday", "weekend") for hours in ("00:00-12:00", "12:00-24:00")]
    assert spans(week, [1, 2]) == "weekday 12:00-24:00, weekend 00:00-12:00"
    assert spans(["night", "morning", "day"], [0, 1]) == "night to morning"


def test_hours_with_a_gap_are_two_spans() -> None:
    """Though nothing is between them in the plan."""
    assert spans(["08:00-09:00", "11:00-12:00", "night"], [0, 1]) == "08:00-09:00, 11:00-12:00"


def test_a_period_begins_with_its_first_hour() -> None:
    """Names that are none of hours are what they are."""
    assert beginning("weekday 08:00-09:00") == "weekday 08:00"
    assert beginning("night") == "night"


def test_a_table_is_aligned_and_valid_markdown() -> None:
    """Words to the left, numbers to the right."""
    assert table(("place", "USD"), [("cellar", "9"), ("x", "1,200")]) == [
        "| place  |   USD |",
        "|--------|------:|",
        "| cellar |     9 |",
        "| x      | 1,200 |",
    ]
