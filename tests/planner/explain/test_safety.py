"""What promises cost and ways of buying save, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoa.planner.explain import Bought, safety
from stoa.planner.problem import Bucket, Group, Problem, Scenario
from stoa.planner.program import solve
from stoa.programs import NoOptimum
from tests.planner.explain.worlds import HOSTED, HOURLY, OWN, RESERVED, SPOT, limited, rules, world


def bought(problem: Problem, what: str) -> Bought:
    return next(b for b in safety(problem) if what in b.what)


def test_a_margin_costs_the_machines_it_adds() -> None:
    """Half as much again of three machines by the hour is one and a half more."""
    found = bought(world(rules=rules(margin=(1.5, 1.5))), "peaks")
    assert found.usd == pytest.approx(720 * 1.5)
    assert found.share == pytest.approx(1.5 / 3.6)


def test_surviving_a_place_costs_machines_elsewhere() -> None:
    """The cloud has three machines by the hour although the cellar has one, since that may be lost; and the cellar has more,
    since the cloud may be lost."""
    problem = limited(3, None, rules=rules(survive_place=True))
    assert bought(problem, "any one place").usd == pytest.approx(720 * 3 * 1.0)


def test_surviving_the_loss_of_spot_costs_machines_that_are_not() -> None:
    """Three spot machines would do, were they not to be lost together."""
    problem = world(offers=(HOURLY, SPOT), rules=rules(survive_spot=True))
    assert bought(problem, "spot machines of a place").usd == pytest.approx(720 * 3 * (1.0 - 0.4))


def test_keeping_a_group_at_home_costs_what_elsewhere_is_cheaper() -> None:
    """Named with the group and its places."""
    problem = world(
        offers=(replace(OWN, hourly_usd=2.0, limit=9), HOURLY),
        groups=(Group("clinic", frozenset({"cellar"})),),
        buckets=(Bucket("chat", "clinic", 900.0, 100.0, (3.0, 3.0)),),
    )
    assert bought(problem, "keeping clinic at cellar").usd == pytest.approx(720 * 3 * (2.0 - 1.0))


def test_scenarios_cost_what_their_mean_would_not() -> None:
    """Machines are there for the worst of them."""
    likely = (Scenario("usual", 0.5, (1.0, 1.0)), Scenario("much", 0.5, (3.0, 3.0)))
    problem = world(offers=(HOURLY,), scenarios=likely)
    assert bought(problem, "usual, much").usd == pytest.approx(720 * (9 - 6) * 1.0)


def test_several_promises_are_also_dropped_together() -> None:
    """They share machines, so their sum says little."""
    problem = world(
        offers=(HOURLY, replace(HOURLY, place="cellar")), rules=rules(margin=(2.0, 2.0), survive_place=True)
    )
    assert bought(problem, "together").usd == pytest.approx(720 * (12 - 3))
    assert bought(problem, "peaks").usd == pytest.approx(720 * (12 - 6))


def test_ways_of_buying_save_what_others_cost_more() -> None:
    """The owned machine saves its hours by the hour less its power; reserving saves 40 %."""
    problem = world(offers=(OWN, HOURLY, RESERVED))
    assert bought(problem, "reserving").usd == pytest.approx(720 * 2 * 0.4)
    assert bought(problem, "that are owned").usd == pytest.approx(720 * (0.6 - 0.1))
    assert bought(problem, "by the hour").usd == pytest.approx(0.0, abs=1e-6)


def test_an_option_without_which_there_is_no_plan_says_so() -> None:
    """No price, and no share."""
    found = bought(world(offers=(HOURLY,), apis=()), "renting by the hour")
    assert (found.usd, found.share) == (None, None)


def test_hosted_models_are_an_option_too() -> None:
    """They save what machines would cost for a trickle."""
    problem = world(night=0.001, day=0.001, offers=(HOURLY,), apis=(HOSTED,))
    found = bought(problem, "by the token")
    assert found.usd is not None
    assert found.usd >= 0


def test_machines_that_are_committed_to_stay() -> None:
    """Not reserving any more saves nothing if one is reserved already and no other would be."""
    problem = world(night=1.0, day=1.0, offers=(HOURLY, RESERVED), committed={("cloud", "box"): 1})
    assert bought(problem, "reserving").usd == pytest.approx(0.0, abs=1e-6)


def test_a_budget_does_not_hide_what_things_cost() -> None:
    """Without the owned machine the budget would not do; what it saves is said all the same."""
    problem = world(rules=rules(budget_usd=720 * 2.2))
    assert bought(problem, "that are owned").usd == pytest.approx(720 * 0.9)


def test_what_was_not_asked_for_is_not_listed() -> None:
    """No margin, no losses, no scenarios, no restricted group."""
    assert not [b for b in safety(world()) if b.kind == "safety"]


def test_a_problem_without_a_plan_has_nothing_to_compare_with() -> None:
    """It says so."""
    with pytest.raises(NoOptimum):
        safety(limited(1, 1))


def test_whole_machines_are_compared_with_the_plan() -> None:
    """Half a machine is a machine, with a margin or without: the margin costs nothing, and in parts of machines it would."""
    problem = world(night=0.4, day=0.4, offers=(HOURLY,), rules=rules(margin=(2.0, 2.0)))
    plan = solve(problem)
    (whole,) = (b for b in safety(problem, whole=plan) if "peaks" in b.what)
    assert (whole.usd, whole.least_usd, whole.most_usd) == pytest.approx((0.0, 0.0, 0.0))
    assert bought(problem, "peaks").usd == pytest.approx(720 * 0.4)
