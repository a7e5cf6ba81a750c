"""The explanation as a whole: everything that matters is in it, and its sums are the plan's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stoa.planner.explain import Reckoned, as_json, explain, reckon, safety, values
from stoa.planner.explain.text import usd
from stoa.planner.plan import Plan
from stoa.planner.problem import Bucket, Fit, Group, Problem, Scenario
from stoa.planner.program import solve
from tests.planner.explain.worlds import CHAT, HOSTED, HOURLY, OWN, RESERVED, SPOT, rules, world
from tests.planner.problems import draw


def hybrid() -> Problem:
    """Something of everything."""
    return world(
        night=2.0,
        day=6.0,
        offers=(OWN, HOURLY, replace(SPOT, limit=2, availability=0.9), RESERVED),
        apis=(HOSTED,),
        groups=(
            Group("all", frozenset({"cellar", "cloud", "far"})),
            Group("clinic", frozenset({"cellar"}), rules=("patients' data: clinic-*: only owned",)),
        ),
        buckets=(
            Bucket("chat", "all", 900.0, 100.0, (2.0, 6.0)),
            Bucket("chat", "clinic", 900.0, 100.0, (0.1, 0.2)),
        ),
        fits=(
            Fit("box", "ours", (1.0, 1.0), (0.5, 0.5), "roofline", why="reckoned from the datasheet of L40S"),
        ),
        rules=rules(margin=(1.2, 1.2), survive_spot=True, budget_usd=9000.0),
    )


@pytest.fixture(scope="module")
def told() -> tuple[Problem, Plan, str]:
    problem = hybrid()
    plan = solve(problem)
    return problem, plan, explain(plan, problem, ("prices are those of the cheapest zone",))


def test_every_question_has_its_part(told: tuple[Problem, Plan, str]) -> None:
    """In this order."""
    headings = [line[3:] for line in told[2].splitlines() if line.startswith("## ")]
    assert headings == [
        "What runs where, and why", "What to reserve", "Where requests go", "What it costs", "How sure this is",
        "What is scarce", "What safety costs", "Where the figures come from", "Notes on the inputs", "Words",
    ]  # fmt: skip


def test_the_cost_is_told_for_a_day_and_for_thirty(told: tuple[Problem, Plan, str]) -> None:
    """The horizon is thirty days, so the sum is the plan's."""
    _, plan, text = told
    first = text.splitlines()[2]
    assert first.startswith(
        f"{usd(plan.costs.total)} USD per 30 days ({usd(plan.costs.total / 30)} per day, "
    )
    assert f"{plan.costs.total:,.0f} | 100 % |" in text


def test_another_horizon_is_told_for_the_same_spans() -> None:
    """A year's plan costs the same in thirty days."""
    month = world()
    year = world(periods=tuple(replace(p, times=365.0) for p in month.periods))
    first = [explain(solve(p), p).splitlines()[2] for p in (month, year)]
    assert first[0].split(")")[0] == first[1].split(")")[0]


def test_restricted_groups_their_rule_and_their_place_are_named(told: tuple[Problem, Plan, str]) -> None:
    """And where their requests go."""
    text = " ".join(told[2].split())
    assert (
        "only at cellar: clinic (rule: patients' data: clinic-*: only owned). No request of it goes elsewhere."
        in text
    )
    assert "- chat, clinic: 0.15 requests a second on average - 100 % to ours on box at cellar" in text


def test_each_way_of_paying_is_explained(told: tuple[Problem, Plan, str]) -> None:
    """With its price, and what else one would pay."""
    text = " ".join(told[2].split())
    assert (
        "Owned machines are there already and cost only what running them does: box 0.10 USD an hour." in text
    )
    assert "box 0.60 USD an hour (instead of 1.00: cheaper if it runs more than 60 % of the time)" in text
    assert "The budget is 9,000 USD per 30 days" in text


def test_a_datasheet_is_told_from_a_measurement(told: tuple[Problem, Plan, str]) -> None:
    """Whoever reads it knows what to measure before buying."""
    text = " ".join(told[2].split())
    assert "Reckoned from datasheets" in text
    assert "ours on box (reckoned from the datasheet of L40S)" in text
    assert "prices are those of the cheapest zone" in text


def test_what_is_scarce_and_what_safety_costs_are_tables(told: tuple[Problem, Plan, str]) -> None:
    """Of money."""
    text = told[2]
    assert "one more box at cellar (owned)" in text
    assert "room for peaks within a period (x 1.20)" in text
    assert "surviving the loss of all spot machines of a place" in text
    assert "without spot at cloud" in text


def test_lines_fit_a_terminal_and_tables_are_left_alone(told: tuple[Problem, Plan, str]) -> None:
    """A table's row is one line."""
    assert all(len(line) <= 120 for line in told[2].splitlines() if not line.startswith("|"))
    rows = [line for line in told[2].splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_nothing_to_reserve_and_nothing_scarce_is_said() -> None:
    """In a sentence each."""
    problem = world(offers=(HOURLY,))
    text = explain(solve(problem), problem)
    assert "Nobody offers machines that way." in text
    assert "Nothing: no limit makes the plan dearer." in text
    assert "No margin, no survival of losses and no rule of places was asked for." in text
    assert "Notes on the inputs" not in text


def test_late_requests_scenarios_and_services_that_need_not_survive_are_told() -> None:
    """What was promised is said as it was promised."""
    problem = world(
        offers=(HOURLY, replace(HOURLY, place="cellar")),
        services=(CHAT, replace(CHAT, name="batch", survives=False)),
        buckets=(
            Bucket("chat", "all", 900.0, 100.0, (1.0, 1.0)),
            Bucket("chat", "all", 20_000.0, 100.0, (0.001, 0.001), late=True),
            Bucket("batch", "all", 900.0, 100.0, (1.0, 1.0)),
        ),
        fits=(Fit("box", "ours", (1.0, 9.0, 1.0), (0.5, 4.0, 0.5)),),
        scenarios=(Scenario("usual", 0.9, (1.0, 1.0)), Scenario("fair", 0.1, (2.0, 2.0))),
        rules=rules(survive_place=True, strain=1.5),
    )
    text = " ".join(explain(solve(problem), problem).split())
    assert "Some of chat is served late: prompts of about 20,000 tokens and more" in text
    assert "usual (90 % likely) and fair (10 % likely)" in text
    assert "except batch, for which that was not promised" in text
    assert "up to 1.5 times as full as usual" in text


def test_the_same_facts_as_json(told: tuple[Problem, Plan, str]) -> None:
    """Plain values whose sums are the plan's."""
    problem, plan, _ = told
    found = json.loads(json.dumps(as_json(plan, problem)))
    assert found["usd"] == pytest.approx(plan.costs.total)
    assert found["usd_per_30_days"] == pytest.approx(30 * found["usd_per_day"])
    parts = sum(m["usd"] for m in found["machines"]) + sum(a["usd"] for a in found["apis"])
    assert parts == pytest.approx(plan.costs.total)
    assert sum(r["usd"] for r in found["requests"]) == pytest.approx(plan.costs.total)
    assert {m["source"] for m in found["machines"]} == {"roofline"}
    assert found["survives"] == ["without spot at cloud"]


def test_what_was_reckoned_once_need_not_be_again(told: tuple[Problem, Plan, str]) -> None:
    """Text and JSON can share it."""
    problem, plan, text = told
    known = reckon(plan, problem)
    assert explain(plan, problem, ("prices are those of the cheapest zone",), reckoned=known) == text
    assert as_json(plan, problem, reckoned=known)["scarce"]


@pytest.mark.parametrize("seed", range(3))
def test_any_plan_can_be_told(seed: int) -> None:
    """With several models, places and ways of paying."""
    problem = draw(seed, places=3, cards=6, models=3, periods=2, buckets=12, rate=20.0, api=True)
    plan = solve(problem, gap=0.02, time_limit_s=10.0)
    text = explain(plan, problem, reckoned=Reckoned(values(problem), safety(problem)))
    for rented in plan.rented:
        assert f"### {rented.pool.place}" in text
        assert rented.pool.machine in text
    assert "nan" not in text
    assert "inf" not in text.replace("infer", "")


def test_few_machines_are_reckoned_whole_and_many_in_parts() -> None:
    """Parts of two machines say little; for hundreds they are near enough, and soon reckoned."""
    few = world(night=0.4, day=0.6, offers=(HOURLY,))
    many = world(night=400.5, day=600.5, offers=(HOURLY,))
    assert reckon(solve(few), few).whole
    assert not reckon(solve(many), many).whole


def test_a_figure_that_is_not_sure_is_told_as_a_range() -> None:
    """As far as the search for another plan came."""
    problem = world(rules=rules(margin=(1.5, 1.5)))
    plan = solve(problem)
    known = reckon(plan, problem)
    unsure = replace(known.safety[0], usd=100.0, share=0.1, least_usd=100.0, most_usd=300.0)
    text = explain(plan, problem, reckoned=replace(known, safety=(unsure,), whole=True))
    assert "100 to 300 |" in text
    assert "another plan" in text
