"""A plan becomes what a fleet can follow, and nothing that the plan forbids."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from stoa.fleet.policies.contract import ANY, FleetPlan, parse_plan
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.planner.apply import OVERFLOW_SHARE, fleet_plan
from stoa.planner.files.decode import read_document
from stoa.planner.livefacts import LiveFacts, live_facts
from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import Api, Group, Period, Problem, Rules, Scenario
from stoa.planner.program import sketch
from tests.planner import hybrid
from tests.planner.files.worlds import document, files, owned, write
from tests.planner.hybrid import CELLAR, IRELAND, MODEL, SMALL
from tests.planner.problems import draw


def applied(problem: Problem | None = None, plan: Plan | None = None, **more: float) -> FleetPlan:
    at = problem or hybrid.problem()
    return fleet_plan(plan or hybrid.plan(at), at, hybrid.facts(), **more)


def test_machine_counts_become_targets() -> None:
    """By place and way of buying, with what is left of each offer as room."""
    section = applied().models[MODEL]
    found = {(t.place, t.machine, t.market): (t.replicas, t.most) for t in section.targets}
    assert found == {
        (CELLAR, "box", "owned"): ((2, 2), 2),
        (IRELAND, SMALL, "on_demand"): ((0, 0), None),
        (IRELAND, SMALL, "spot"): ((0, 3), 8),
        (IRELAND, SMALL, "reserved"): ((0, 2), 2),
    }


def test_targets_say_how_much_of_them_is_counted_on() -> None:
    """The availability that the plan reckoned with."""
    problem = hybrid.problem()
    offers = tuple(replace(o, availability=0.75) if o.purchase == "spot" else o for o in problem.offers)
    rare = replace(problem, offers=offers)
    targets = applied(rare, hybrid.plan(problem)).models[MODEL].targets
    assert {t.market: t.availability for t in targets} == {
        "owned": 1.0, "on_demand": 1.0, "spot": 0.75, "reserved": 1.0,
    }  # fmt: skip


def test_routes_become_weights_and_overflow() -> None:
    """Weights as forecast, by group; an API gets at most what any world sends there. Who must stay is in no rule."""
    section = applied().models[MODEL]
    by_group = {w.groups: w for w in section.weights}
    assert by_group["patients",].places == {CELLAR: (1.0, 1.0)}
    assert not by_group["patients",].remotes
    both = by_group["default",]
    assert both.places == {CELLAR: (1.0, 0.4), IRELAND: (0.0, 0.5)}
    assert both.remotes == {"burst": (0.0, 0.1)}
    (rule,) = section.overflow
    assert (rule.remote, rule.groups, rule.after, rule.wait_s) == ("burst", ("default",), "wait", 2.0)
    assert rule.most_share == 0.5
    assert section.imbalance_s == 0.5


def test_an_api_that_no_world_uses_may_help_a_little() -> None:
    """Or not at all, if that is wanted."""
    plan = hybrid.plan()
    routes = tuple(r for r in plan.routes if r.world != "without cellar" and r.target != "burst")
    alone = replace(plan, routes=routes)
    assert applied(plan=alone).models[MODEL].overflow[0].most_share == OVERFLOW_SHARE
    assert applied(plan=alone, overflow_share=0.0).models[MODEL].overflow[0].most_share == 0.0


def test_what_is_left_of_the_budget_limits_an_api() -> None:
    """Its own planned spending and the rest, by day; without a budget there is no limit."""
    at = hybrid.budgeted(3000.0)
    plan = hybrid.plan(at)
    expected = (3000 - plan.costs.total + plan.costs.api) / 30
    assert applied(at, plan).models[MODEL].daily_usd == {"burst": pytest.approx(expected, abs=0.01)}
    assert applied().models[MODEL].daily_usd == {}


def test_scenarios_are_weighed() -> None:
    """Weights are their mean, overflow is for the worst of them."""
    at = hybrid.problem(scenarios=(Scenario("calm", 0.75, (1, 1)), Scenario("busy", 0.25, (1, 2))))
    plan = hybrid.plan(at)
    shares = {"calm": 0.0, "busy": 0.6}
    routes = [r for r in plan.routes if r.bucket]
    for world, share in shares.items():
        routes += [
            replace(plan.routes[0], world=world, shares=(1.0, 1 - share)),
            replace(plan.routes[2], world=world, shares=(0.0, share)),
        ]
    section = applied(at, replace(plan, routes=tuple(routes))).models[MODEL]
    both = next(w for w in section.weights if w.groups == ("default",))
    assert both.remotes["burst"][1] == pytest.approx(0.25 * 2 * 0.6 / (0.75 + 0.25 * 2))
    assert section.overflow[0].most_share == 0.6


def test_projects_yet_to_come_are_the_others() -> None:
    """They are free where a group is; else they may be served where everybody may."""
    groups = {g.name: g for g in applied().groups}
    assert groups["default"].projects == ("shop", ANY)
    assert groups["default"].places == (ANY,)
    strict = hybrid.problem(
        groups=(
            Group("default", frozenset({CELLAR, IRELAND}), ("shop",), ("a rule",)),
            Group("patients", frozenset({CELLAR}), ("clinic-1",), ("another",)),
        ),
        apis=(Api("burst", CELLAR, MODEL, 1e-6, 2e-6, 0.6, 0.02),),
    )
    found = ModelPlan.of(applied(strict), MODEL, machine="box")
    assert found.confines("new") == {CELLAR}
    assert found.confines("shop") == {CELLAR, IRELAND}


def test_several_kinds_of_machine_are_several_fleets() -> None:
    """Each says which one it runs; places have the zones that their labels tell of."""
    plan = applied()
    box, small = (ModelPlan.of(plan, MODEL, machine=m) for m in ("box", SMALL))
    assert [p.replicas for p in box.pools] == [(2, 2)]
    assert {p.market: (p.replicas, p.most) for p in small.pools} == {
        "on_demand": ((0, 2), math.inf), "spot": ((0, 3), 8),
    }  # fmt: skip
    assert [box.place_of(z) for z in ("cellar", "eu-west-1b", "eu-west-2b")] == [CELLAR, IRELAND, ""]


def test_other_models_leave_less() -> None:
    """Of an offer's limit, and only machines that the model uses are in its section."""
    at = hybrid.problem()
    plan = hybrid.plan(at)
    other = replace(plan.rented[2], pool=Pool(IRELAND, SMALL, "theirs"), counts=(4, 1))
    fits = (*at.fits, replace(at.fits[1], model="theirs"))
    services = (*at.services, replace(at.services[0], name="more", models=("theirs",)))
    both = replace(at, fits=fits, services=services)
    found = applied(both, replace(plan, rented=(*plan.rented, other)))
    assert {t.market: t.most for t in found.models[MODEL].targets if t.place == IRELAND}["spot"] == 4
    assert {t.machine for t in found.models["theirs"].targets} == {SMALL}


@pytest.mark.parametrize("seed", range(6))
def test_plans_of_problems_drawn_by_chance_can_be_followed(seed: int) -> None:
    """Whatever the solver gives is a right file, comes back from JSON, and keeps groups where they may be."""
    at = draw(
        seed,
        places=3,
        cards=4,
        models=2,
        periods=24,
        buckets=12,
        rate=20,
        rules=Rules(survive_spot=True),
        api=True,
    )
    plan = sketch(at)
    text = msgspec.json.encode(fleet_plan(plan, at))
    found = parse_plan(text, "plan.json")
    for model, section in found.models.items():
        for machine in {t.machine for t in section.targets} or {""}:
            mine = ModelPlan.of(found, model, machine=machine)
            counts = [
                sum(n for pool, _, n in plan.machines(t) if (pool.model, pool.machine) == (model, machine))
                for t in range(24)
            ]
            assert [sum(p.replicas[t] for p in mine.pools) for t in range(24)] == counts
        for w in section.weights:
            if w.groups == ("home",):
                assert set(w.places) <= {"place-0"}
        assert all("home" not in rule.groups for rule in section.overflow if at.apis[0].place != "place-0")


# -- what the document tells


def facts_of(tmp_path: Path, **changes: object) -> LiveFacts:
    path = write(files(tmp_path), document(**changes))
    return live_facts(hybrid.problem(), read_document(path))


def test_a_document_tells_hours_regions_rules_and_classes(tmp_path: Path) -> None:
    """Rules keep their patterns, so that they hold for projects that come later."""
    facts = facts_of(
        tmp_path,
        time_zone="Europe/Berlin",
        periods={"kind": "spans", "span": [
            {"name": "day", "hours": ["8-20"], "days": ["mon", "tue", "wed", "thu", "fri"]},
            {"name": "night", "hours": ["0-8", "20-24"], "days": ["mon", "tue", "wed", "thu", "fri"]},
            {"name": "weekend", "days": ["sat", "sun"]},
        ]},
        place=[
            owned([{"type": "box", "count": 2}]),
            {"name": IRELAND, "kind": "cloud", "provider": "aws", "region": "eu-west-1"},
        ],
        rule=[{"name": "patients", "projects": ["clinic-*"], "only": ["eu"], "never": ["cloud"]}],
        service=[
            {"name": "chat", "models": [MODEL], "ttft": "2 s", "match": {"classes": ["inter*"]}},
            {"name": "slow", "models": [MODEL], "ttft": "30 s"},
        ],
    )  # fmt: skip
    at = hybrid.problem()
    three = replace(
        at,
        periods=(Period("day", 12, 20), Period("night", 12, 20), Period("weekend", 24, 8)),
        buckets=tuple(replace(b, rates=(1.0, 2.0, 3.0)) for b in at.buckets),
    )
    plan = hybrid.plan(at)
    longer = replace(
        plan,
        rented=tuple(replace(r, counts=(*r.counts, 1)) for r in plan.rented),
        routes=tuple(replace(r, shares=(*r.shares, r.shares[0])) for r in plan.routes),
    )
    found = fleet_plan(longer, three, facts)
    mine = ModelPlan.of(found, MODEL, machine=SMALL)
    assert mine.confines("clinic-99") == {CELLAR}
    assert mine.place_of("eu-west-1c") == IRELAND
    names = [mine.period(mine.calendar.at(1_795_478_400.0 + 3600 * h)) for h in (0, 8, 20, 24 * 4)]
    assert names == ["night", "day", "night", "weekend"]  # from Tuesday, 1:00 in Berlin
    assert {w.service for w in found.models[MODEL].weights} == {"interactive", "batch"}
    slow = next(r for r in found.models[MODEL].overflow if r.service == "batch")
    assert slow.wait_s == 30.0
