"""The drawing of a plan."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from stoa.planner.chart import draw
from stoa.planner.problem import Period, Place, Scenario
from stoa.planner.program import solve
from tests.planner import problems
from tests.planner.explain.worlds import HOSTED, HOURLY, OWN, SPOT, rules, world

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_places_ways_of_paying_and_work_are_drawn() -> None:
    """Three panels with their legends, and periods by when they begin."""
    problem = world(night=1.0, day=6.0, offers=(OWN, HOURLY, SPOT), rules=rules(margin=(1.2, 1.2)))
    said = texts(draw(solve(problem), problem))
    for text in (
        "USD per hour, by place", "cellar", "cloud", "owned", "spot", "with margin", "mean (dashed)",
        "requests per second, by who answers", "00:00", "12:00",
    ):  # fmt: skip
        assert text in said


def test_names_are_escaped_and_shortened() -> None:
    """Any name makes a drawing."""
    name = "<a very long name of a place & more>"
    problem = world(
        places=(Place("cellar"), Place(name), Place("far")), offers=(replace(HOURLY, place=name),),
        groups=tuple(replace(g, places=frozenset({name})) for g in world().groups),
    )  # fmt: skip
    said = texts(draw(solve(problem), problem))
    assert "<a very long name…" in said


def test_hosted_models_alone_are_a_drawing() -> None:
    """No machine at all: the panel of machines is empty."""
    problem = world(night=0.001, day=0.002, offers=(HOURLY,), apis=(HOSTED,))
    plan = solve(problem)
    assert not plan.rented
    assert "far" in texts(draw(plan, problem))


def test_one_period_and_scenarios_are_a_drawing() -> None:
    """As are plans of a single stretch of time."""
    scenarios = (Scenario("usual", 0.5, (1.0,)), Scenario("much", 0.5, (2.0,)))
    whole = world(scenarios=())
    problem = replace(
        whole,
        periods=(Period("always", 24.0, 30.0),),
        buckets=tuple(replace(b, rates=b.rates[:1]) for b in whole.buckets),
        scenarios=scenarios,
    )
    assert "always" in texts(draw(solve(problem), problem))


@pytest.mark.parametrize("seed", range(2))
def test_nothing_leaves_its_panel(seed: int) -> None:
    """All points lie between the panel's lines."""
    problem = problems.draw(seed, places=3, cards=6, models=2, periods=24, buckets=12, rate=20.0, api=True)
    root = ET.fromstring(draw(solve(problem, gap=0.05, time_limit_s=10.0), problem))
    for shape in [*root.iter(f"{SVG}polygon"), *root.iter(f"{SVG}polyline")]:
        points = [tuple(map(float, each.split(","))) for each in shape.attrib["points"].split()]
        assert all(70 <= x <= 810 for x, _ in points)
        ys = [y for _, y in points]
        assert any(top - 0.1 <= min(ys) and max(ys) <= top + 130.1 for top in (60, 224, 388))
