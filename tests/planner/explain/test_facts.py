"""Figures of a plan: what its parts cost sums to its cost, and nobody is counted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.planner.explain import facts, work
from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import Problem, Rules, Scenario
from stoa.planner.program import NoPlan, sketch, solve
from tests.planner.explain.worlds import HOSTED, HOURLY, OWN, RESERVED, world
from tests.planner.problems import draw

FEW = (Scenario("usual", 0.75, (1.0, 1.0, 1.0)), Scenario("much", 0.25, (1.6, 1.2, 1.4)))


def drawn(seed: int, **changes: object) -> tuple[Problem, Plan] | None:
    problem = replace(
        draw(seed, places=2, cards=4, models=2, periods=3, buckets=8, rate=20.0, api=True),
        **changes,  # type: ignore[arg-type]
    )
    try:
        return problem, sketch(problem)
    except NoPlan:
        return None


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    changes=st.sampled_from([{}, {"scenarios": FEW}, {"rules": Rules(margin=(1.3,) * 3)}]),
)
def test_parts_sum_to_the_whole(seed: int, changes: dict[str, object]) -> None:
    """Rows, hosted models, places and periods: each way of adding up gives the plan's cost, all requests and all tokens."""
    if (found := drawn(seed, **changes)) is None:
        return
    problem, plan = found
    rows, called = facts.rows(plan, problem), facts.called(plan, problem)
    cost = plan.costs
    assert sum(r.usd for r in rows) == pytest.approx(sum(cost.machines.values()))
    assert sum(c.usd for c in called) == pytest.approx(cost.api)
    by_place = facts.usd_by_place(plan, problem)
    hours = problem.hours
    total = sum(usd * h for series in by_place.values() for usd, h in zip(series, hours, strict=True))
    assert total == pytest.approx(cost.total)
    flows = facts.flows(plan, problem)
    scale = [sum(s.probability * s.factors[t] for s in problem.scenarios) or 1.0 for t in range(3)]
    asked = sum(
        rate * f * h * 3600 for b in problem.buckets for rate, f, h in zip(b.rates, scale, hours, strict=True)
    )
    assert sum(f.requests for f in flows) == pytest.approx(asked, rel=1e-5)
    assert all(sum(share for _, share in f.shares) == pytest.approx(1) for f in flows)
    tokens = sum(r.tokens for r in rows) + sum(c.tokens for c in called)
    assert tokens == pytest.approx(sum(f.tokens for f in flows))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    changes=st.sampled_from([{}, {"scenarios": FEW}, {"rules": Rules(margin=(1.3,) * 3)}]),
)
def test_machines_are_enough_for_the_work(seed: int, changes: dict[str, object]) -> None:
    """In every period, with the margin and in the dearest scenario, which is never below what is expected."""
    if (found := drawn(seed, **changes)) is None:
        return
    problem, plan = found
    there, (needed, mean) = work.there(plan, problem), work.work(plan, problem)
    for t in range(3):
        assert needed[t] <= sum(series[t] for series in there.values()) + 1e-3
        assert mean[t] <= needed[t] + 1e-9


def test_a_commitment_is_shared_by_use_and_told_with_it() -> None:
    """Two reserved machines of which one runs half the day are in use three quarters of the time."""
    problem = world(night=1.0, day=2.0, offers=(replace(RESERVED, hourly_usd=0.4), HOURLY))
    plan = solve(problem)
    (row,) = (r for r in facts.rows(plan, problem) if r.offer.purchase == "reserved")
    (reserved,) = facts.reserved(plan, problem)
    assert (reserved.count, reserved.used) == (2, pytest.approx(0.75))
    assert row.usd == reserved.usd == pytest.approx(2 * 0.4 * 720)
    assert max(row.counts) == 2


def test_a_commitment_that_nobody_uses_is_still_a_row() -> None:
    """It is paid for."""
    problem = world(night=1.0, day=1.0, offers=(OWN, RESERVED), committed={("cloud", "box"): 1})
    problem = replace(problem, offers=(replace(OWN, limit=2), RESERVED))
    plan = solve(problem)
    unused = replace(plan, rented=tuple(r for r in plan.rented if r.purchase != "reserved"))
    (row,) = (r for r in facts.rows(unused, problem) if r.offer.purchase == "reserved")
    assert (row.model, set(row.counts), row.usd) == ("", {0}, pytest.approx(0.6 * 720))


def test_losses_that_are_survived_are_named() -> None:
    """As the plan's worlds are called."""
    problem = world(offers=(replace(OWN, limit=9), HOURLY), rules=Rules(survive_place=True))
    assert facts.survived(solve(problem), problem) == ("without cellar", "without cloud")


def test_hosted_models_are_called_by_name_and_place() -> None:
    """A trickle goes there."""
    problem = world(night=0.001, day=0.002, offers=(HOURLY,), apis=(HOSTED,))
    (called,) = facts.called(solve(problem), problem)
    assert called.rates == pytest.approx((0.001, 0.002))
    assert facts.place_of(problem, "burst") == "far"
    assert facts.name_of(problem, "burst") == "burst (API)"
    assert facts.place_of(problem, Pool("cloud", "box", "ours")) == "cloud"
