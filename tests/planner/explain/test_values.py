"""What one more of something scarce saves, and what serving costs: by hand, and against solving again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.planner.explain import values
from stoa.planner.explain.relaxation import relaxation
from stoa.planner.problem import Bucket, Fit, Group, Offer, Problem, Rules
from stoa.planner.program import solve
from stoa.programs import NoOptimum
from tests.planner.explain.worlds import HOSTED, HOURLY, OWN, RESERVED, SPOT, limited, rules, world
from tests.planner.problems import draw


def saved(problem: Problem, what: str) -> float:
    return next(w.saves_usd_per_day for w in values(problem).worths if what in w.what)


def test_another_owned_machine_saves_what_renting_costs_beyond_its_power() -> None:
    """Three machines are needed all day, one is owned: a second saves 24 hours at the difference of both prices."""
    assert saved(world(), "box at cellar") == pytest.approx(24 * (1.0 - 0.1))


def test_another_machine_that_nobody_needs_saves_nothing() -> None:
    """It is named all the same, since somebody may think of buying it."""
    worth = values(limited(5, None)).worths
    assert [(w.what, w.saves_usd_per_day) for w in worth] == [("one more box at cellar (owned)", 0.0)]


def test_half_the_day_saves_half() -> None:
    """At night the owned machine is enough."""
    assert saved(world(night=1.0), "box at cellar") == pytest.approx(12 * (1.0 - 0.1))


def test_owned_machines_come_first_then_the_dearest() -> None:
    """Whatever saves more, what stands in the cellar is named before what is rented."""
    offers = (replace(SPOT, hourly_usd=0.05, limit=1), replace(SPOT, place="far", limit=1), OWN, HOURLY)
    worth = values(world(night=4.0, day=4.0, offers=offers)).worths
    assert [w.offer.purchase for w in worth if w.offer] == ["owned", "spot", "spot"]
    assert worth[1].saves_usd_per_day > worth[2].saves_usd_per_day


def test_a_limit_on_what_may_be_reserved_is_known_too() -> None:
    """It bounds the commitment, not the machines."""
    problem = world(offers=(OWN, HOURLY, replace(RESERVED, limit=1)))
    assert saved(problem, "(reserved)") == pytest.approx(24 * (1.0 - 0.6))


def test_limits_of_hosted_models_and_carbon_and_ramps_are_scarce_things() -> None:
    """A tenth more of a limit that is a number of requests or kilograms, and a machine more of a ramp."""
    cheap = replace(HOSTED, input_usd=1e-9, output_usd=1e-9, requests_per_s=1.0)
    assert saved(world(apis=(cheap,)), "requests a second from burst") == pytest.approx(24 * 0.1, rel=0.01)
    tokens = replace(cheap, requests_per_s=float("inf"), tokens_per_s=1000.0)
    assert saved(world(apis=(tokens,)), "tokens a second from burst") == pytest.approx(24 * 0.1, rel=0.01)
    kept = 1.0 - 0.1  # at night a machine by the hour stays, and the owned one has nothing to do
    assert saved(world(night=1.0, rules=rules(ramp=1)), "a ramp of 2 machines") == pytest.approx(12 * kept)


def test_carbon_that_makes_the_plan_dearer_is_priced() -> None:
    """Dirty machines are cheaper; each kilogram more lets them run longer."""
    dirty = replace(HOURLY, place="far", hourly_usd=0.5)
    problem = world(offers=(OWN, HOURLY, dirty), rules=rules(carbon_kg=100.0))
    places = tuple(replace(p, carbon_g_per_kwh=500.0 if p.name == "far" else 0.0) for p in problem.places)
    hours = 0.1 * 100.0 / (0.4 * 0.5)  # that a tenth more carbon buys, in 30 days
    assert saved(replace(problem, places=places), "kg of carbon") == pytest.approx(hours * (1.0 - 0.5) / 30)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), ruled=st.sampled_from([Rules(), Rules(survive_spot=True, ramp=2)]))
def test_no_saving_exceeds_its_shadow_price(seed: int, ruled: Rules) -> None:
    """The cost is convex in every limit: the first bit saves the most."""
    problem = draw(seed, places=2, cards=4, models=2, periods=3, buckets=8, rate=30.0, rules=ruled, api=True)
    try:
        found = values(problem)
    except NoOptimum:
        return
    for worth in found.worths:
        assert -1e-6 <= worth.saves_usd_per_day <= worth.dual_usd_per_day * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_savings_are_near_those_of_whole_machines(seed: int) -> None:
    """Solved again with one machine more, plans of whole machines save about as much, within what whole machines add."""
    problem = draw(seed, places=2, cards=3, models=1, periods=2, buckets=4, rate=30.0)
    before = solve(problem, gap=1e-3, time_limit_s=20.0)
    slack = before.costs.total - relaxation(problem).usd  # what whole machines cost beyond parts of them
    for worth in values(problem).worths[:2]:
        assert worth.offer is not None
        assert worth.offer.limit is not None
        more = replace(worth.offer, limit=worth.offer.limit + 1)
        after = solve(
            replace(problem, offers=tuple(more if o is worth.offer else o for o in problem.offers)),
            gap=1e-3,
            time_limit_s=20.0,
        )
        really = (before.costs.total - after.costs.total) * 24 / problem.horizon_h
        within = slack * 24 / problem.horizon_h + 2e-3 * before.costs.total * 24 / problem.horizon_h
        assert really == pytest.approx(worth.saves_usd_per_day, abs=within)


def test_one_kind_of_request_bears_all_the_cost() -> None:
    """Two machines by the hour and one that is owned, over all tokens."""
    found = values(world())
    (only,) = found.served
    assert found.usd == pytest.approx(720 * (2 * 1.0 + 0.1))
    assert only.usd == pytest.approx(found.usd)
    assert only.tokens == pytest.approx(3 * 3600 * 720 * 1000)


def test_what_needs_more_of_a_machine_bears_more() -> None:
    """Requests that take twice as long cost twice as much."""
    problem = world(
        offers=(HOURLY,),
        groups=(Group("all", frozenset({"cloud"})), Group("long", frozenset({"cloud"}))),
        buckets=(
            Bucket("chat", "all", 900.0, 100.0, (1.0, 1.0)),
            Bucket("chat", "long", 900.0, 100.0, (1.0, 1.0)),
        ),
        fits=(Fit("box", "ours", (1.0, 2.0), (0.5, 0.5)),),
    )
    short, long = values(problem).served
    assert long.usd == pytest.approx(2 * short.usd)
    assert long.usd_per_mtok == pytest.approx(2 * short.usd_per_mtok)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_parts_sum_to_the_cost(seed: int) -> None:
    """No request is served for less than nothing, and nobody's part is forgotten."""
    problem = draw(seed, places=2, cards=4, models=2, periods=3, buckets=8, rate=30.0, api=True)
    found = values(problem)
    assert sum(s.usd for s in found.served) == pytest.approx(found.usd, rel=1e-6)
    assert all(s.usd >= 0 for s in found.served)


def test_a_problem_without_a_plan_has_no_values() -> None:
    """It says so."""
    with pytest.raises(NoOptimum):
        values(limited(1, 1))


def test_offers_of_none_are_not_raised() -> None:
    """A limit of no machines says that there are none to be had."""
    none = Offer("cloud", "box", "spot", 0.1, limit=0)
    assert all(w.offer is not none for w in values(world(offers=(OWN, HOURLY, none))).worths)
