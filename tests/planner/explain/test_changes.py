"""Changes, applied and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoa.planner.explain import Change, applied
from stoa.planner.explain.changes import rounded_up
from stoa.planner.problem import Group, Problem
from tests.planner.explain.worlds import HOSTED, rules, world


def restricted() -> Problem:
    return world(
        apis=(replace(HOSTED, requests_per_s=1.0, tokens_per_s=10.0),),
        groups=(Group("all", frozenset({"cellar"}), rules=("home: *: only owned",)),),
        rules=rules(ramp=1, budget_usd=10.0, carbon_kg=5.0),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change("machines", "box at cellar (owned)", 3, 1), "2 more box at cellar (owned): 3 instead of 1"),
        (Change("budget", to=9200, before=8000), "a budget of at least 9,200 USD instead of 8,000 USD"),
        (Change("carbon", to=520, before=400), "a carbon limit of at least 520 kg instead of 400"),
        (Change("ramp", to=4, before=1), "4 machines instead of 1 that may come or go between two periods"),
        (Change("requests", "burst", 2.5, 1), "2.5 requests a second instead of 1 from burst"),
        (Change("tokens", "burst", 2500, 10), "2,500 tokens a second instead of 10 from burst"),
        (Change("ttft", "chat", 2.4, 2), "2.4 s instead of 2 s to the first token of chat"),
        (Change("tpot", "chat", 0.12, 0.1), "0.12 s instead of 0.1 s for each further token of chat"),
        (
            Change("attainment", "chat", 0.95, 0.99),
            "a promise for 95 % instead of 99 % of chat; the rest may come late",
        ),
        (
            Change("survives", "chat"),
            "no promise that requests of chat are served after the loss of a place or of spot machines",
        ),
        (
            Change("places", "all", place="cloud", rules=("home: *: only owned",)),
            'requests of all may be computed at cloud too, against the rule "home: *: only owned"',
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Change) else "",
)
def test_each_change_says_what_it_does_and_does_only_that(change: Change, said: str) -> None:
    """One field of the problem differs afterwards."""
    assert change.words == said
    before = restricted()
    after = applied(before, [change])
    names = ("offers", "apis", "services", "groups", "rules", "buckets", "fits", "places", "committed")
    assert sum(getattr(before, name) != getattr(after, name) for name in names) == 1
    assert applied(after, [change]) == after


def test_changes_are_applied_together() -> None:
    """In any order, those of other things."""
    two = [Change("ramp", to=4, before=1), Change("machines", "box at cellar (owned)", 3, 1)]
    after = applied(restricted(), two)
    assert after.rules.ramp == 4
    assert after.offers[0].limit == 3
    assert after == applied(restricted(), two[::-1])


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(9187.2, 9190), (94.318, 94.4), (0.5501, 0.551), (432.0, 432), (0.0, 0.0), (1e6, 1e6)],
)
def test_numbers_are_rounded_to_the_safe_side(value: float, rounded: float) -> None:
    """Three digits that count, never below."""
    assert rounded_up(value) == rounded
