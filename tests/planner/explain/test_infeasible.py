"""What would allow a plan where there is none: by hand, and tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoa.errors import StoaError
from stoa.planner.explain import Change, applied, cheapest_change, in_words, ways_out
from stoa.planner.files.throughput import Replica, fits_of
from stoa.planner.problem import Bucket, Group, Network, Problem, Rules, Service
from stoa.planner.program import NoPlan, Unservable, solve
from tests.planner.explain.worlds import CHAT, HOSTED, HOURLY, OWN, SPOT, limited, profiled, rules, world
from tests.planner.problems import draw


def words(problem: Problem) -> list[list[str]]:
    return [[c.words for c in way] for way in ways_out(problem, time_limit_s=30.0)]


def allows_a_plan(problem: Problem, changes: tuple[Change, ...]) -> bool:
    try:
        solve(applied(problem, changes), gap=0.05, time_limit_s=20.0)
    except (NoPlan, Unservable):
        return False
    return True


# -- limits, budgets and the like


def test_the_cheapest_machines_that_are_missing_are_named() -> None:
    """Three are needed and two are there; one of the cloud's costs less than another in the cellar."""
    assert words(limited(1, 1)) == [["1 more box at cloud (on-demand): 2 instead of 1"]]


def test_a_budget_that_would_do_is_told_in_round_dollars() -> None:
    """Two machines by the hour and the owned one cost 1,512 USD; or another two that are owned."""
    problem = world(rules=rules(budget_usd=1000.0))
    found = words(problem)
    assert ["a budget of at least 1,520 USD instead of 1,000 USD"] in found
    assert ["1 more box at cellar (owned): 2 instead of 1"] in found
    assert not allows_a_plan(problem, ())


def test_a_carbon_limit_that_would_do_is_named() -> None:
    """Three machines of 0.4 kW at 500 g/kWh draw 432 kg in 30 days."""
    problem = world(rules=rules(carbon_kg=100.0))
    places = tuple(replace(p, carbon_g_per_kwh=500.0) for p in problem.places)
    assert words(replace(problem, places=places)) == [["a carbon limit of at least 432 kg instead of 100"]]


def test_a_ramp_that_would_do_is_named() -> None:
    """One machine at night and five by day, and no money to keep them."""
    problem = world(night=1.0, day=5.0, offers=(HOURLY,), rules=rules(ramp=1, budget_usd=720 * 3.1))
    assert ["4 machines instead of 1 that may come or go between two periods"] in words(problem)


def test_a_limit_of_a_hosted_model_that_would_do_is_named() -> None:
    """In requests, or in tokens."""
    by_requests = replace(HOSTED, requests_per_s=1.0)
    found = words(world(offers=(OWN,), apis=(by_requests,)))
    assert ["2 requests a second instead of 1 from burst"] in found
    by_tokens = replace(HOSTED, tokens_per_s=500.0)
    found = words(world(offers=(OWN,), apis=(by_tokens,)))
    assert ["2,000 tokens a second instead of 500 from burst"] in found


def test_a_promise_that_cannot_be_kept_may_be_given_up() -> None:
    """All machines are in the cloud: nothing survives it, unless chat need not."""
    problem = world(offers=(HOURLY,), rules=rules(survive_place=True))
    assert words(problem) == [
        ["no promise that requests of chat are served after the loss of a place or of spot machines"]
    ]


def test_where_a_rule_makes_that_so_the_rule_is_named_as_another_way() -> None:
    """The clinic's requests stay in the cellar, which may be lost."""
    rule = "patients' data: clinic: only owned"
    problem = limited(
        9,
        9,
        rules=rules(survive_place=True),
        groups=(Group("clinic", frozenset({"cellar"}), rules=(rule,)),),
        buckets=(Bucket("chat", "clinic", 900.0, 100.0, (3.0, 3.0)),),
    )
    assert words(problem) == [
        ["no promise that requests of chat are served after the loss of a place or of spot machines"],
        [f'requests of clinic may be computed at cloud too, against the rule "{rule}"'],
    ]


def test_the_least_change_comes_first_and_each_is_enough() -> None:
    """A bit of several things may be less than much of one."""
    problem = world(night=9.0, day=9.0, offers=(OWN, SPOT), rules=rules(survive_spot=True, budget_usd=1500.0))
    assert not allows_a_plan(problem, ())
    ways = ways_out(problem, time_limit_s=30.0)
    assert len(ways) > 1
    assert ways[0] == cheapest_change(problem, time_limit_s=30.0)
    assert all(allows_a_plan(problem, way) for way in ways)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "ruled", [Rules(), Rules(survive_place=True), Rules(survive_spot=True, ramp=3)], ids=lambda r: str(r)[:40]
)
def test_every_suggestion_allows_a_plan(seed: int, ruled: Rules) -> None:
    """Problems that have too few machines, of any kind."""
    whole = draw(seed, places=2, cards=3, models=2, periods=2, buckets=6, rate=100.0, rules=ruled)
    problem = replace(whole, offers=tuple(replace(o, limit=min(2, o.limit or 2)) for o in whole.offers))
    if allows_a_plan(problem, ()):
        pytest.skip("few machines are enough here")
    ways = ways_out(problem, time_limit_s=30.0)
    assert ways
    assert all(allows_a_plan(problem, way) for way in ways)


def test_a_large_problem_gets_an_answer_that_is_not_longer_than_it_must_be() -> None:
    """Machines that run are not whole in its program; those that are missing are few all the same."""
    whole = draw(1, places=2, cards=6, models=2, periods=24, buckets=20, rate=40.0)
    offers = tuple(replace(o, limit=1 if o.purchase != "reserved" else 0) for o in whole.offers)
    problem = replace(whole, offers=offers)
    way = cheapest_change(problem, time_limit_s=60.0)
    assert 0 < len(way) <= 5
    assert allows_a_plan(problem, way)


def test_a_problem_with_a_plan_needs_no_change() -> None:
    """Nothing is suggested."""
    assert ways_out(world(), time_limit_s=10.0) == ()
    assert cheapest_change(world(), time_limit_s=10.0) == ()


# -- demand that nothing can serve


def test_a_target_that_would_do_is_named() -> None:
    """Half a second to the first token, where a tenth is promised; a tenth more leaves room for a second request."""
    problem = world(services=(Service("chat", ("ours",), ttft_s=0.1),))
    assert words(problem) == [["0.55 s instead of 0.1 s to the first token of chat"]]


def test_the_way_there_counts() -> None:
    """With the network's delay."""
    problem = world(
        offers=(HOURLY,),
        services=(Service("chat", ("ours",), ttft_s=0.6),),
        buckets=(Bucket("chat", "all", 900.0, 100.0, (3.0, 3.0), origin="office"),),
        network=Network({("office", "cloud"): 0.3}),
    )
    assert words(problem) == [["0.88 s instead of 0.6 s to the first token of chat"]]


def test_the_rule_that_forbids_is_named() -> None:
    """In the cellar there is nothing; elsewhere there would be, were it not for the rule."""
    rule = "patients' data: clinic: only owned"
    problem = world(
        offers=(HOURLY,),
        groups=(Group("clinic", frozenset({"cellar"}), rules=(rule,)),),
        buckets=(Bucket("chat", "clinic", 900.0, 100.0, (3.0, 3.0)),),
    )
    with pytest.raises(Unservable):
        solve(problem)
    assert words(problem) == [[f'requests of clinic may be computed at cloud too, against the rule "{rule}"']]


def with_profile(service: Service, *buckets: Bucket) -> Problem:
    """Loads reckoned as those of files are."""
    replica = Replica("box", "ours", profiled(), "measured", "profile.json", float("inf"))
    fits = fits_of((replica,), buckets, {service.name: service})
    return world(services=(service,), buckets=buckets, fits=fits)


def test_a_pace_that_would_do_is_named_and_loads_are_reckoned_again() -> None:
    """A step takes 20 ms, and 15 are promised."""
    service = Service("chat", ("ours",), ttft_s=2.0, tpot_s=0.015)
    problem = with_profile(service, Bucket("chat", "all", 900.0, 100.0, (1.0, 1.0)))
    (way,) = ways_out(problem, time_limit_s=20.0)
    assert [c.kind for c in way] == ["tpot"]
    assert 0.02 < way[0].to < 0.03
    assert allows_a_plan(problem, way)


def test_few_long_prompts_are_let_late_or_the_target_is_raised() -> None:
    """Of 100 requests 2 have prompts that take three seconds: a promise for 95 % would do as well as one of 3.3 s."""
    usual = Bucket("chat", "all", 900.0, 100.0, (0.98, 0.98))
    long = Bucket("chat", "all", 30_000.0, 100.0, (0.02, 0.02))
    problem = with_profile(CHAT, usual, long)
    ways = ways_out(problem, time_limit_s=20.0)
    assert [[c.kind for c in way] for way in ways] == [["ttft"], ["attainment"]]
    assert ways[1][0].to == pytest.approx(0.96)
    assert all(allows_a_plan(problem, way) for way in ways)


def test_after_demand_can_be_served_machines_may_still_be_missing() -> None:
    """Both are said in one."""
    problem = limited(1, 1, services=(Service("chat", ("ours",), ttft_s=0.1),))
    assert words(problem) == [
        [
            "0.55 s instead of 0.1 s to the first token of chat",
            "1 more box at cloud (on-demand): 2 instead of 1",
        ]
    ]


def test_where_nothing_helps_nothing_is_suggested() -> None:
    """The model is not to be had, and no change that we know of changes that."""
    problem = world(
        services=(replace(CHAT, models=("ours", "theirs")),),
        fits=tuple(replace(f, load_s=(float("inf"),)) for f in world().fits),
    )
    with pytest.raises(StoaError):
        solve(problem)
    assert ways_out(problem, time_limit_s=10.0) == ()
    assert in_words(()).startswith("No change was found that would allow a plan")


def test_several_changes_of_one_way_are_listed_below_each_other() -> None:
    """The first way needs two things, the second one."""
    two = (Change("ramp", to=3, before=1), Change("budget", to=9200, before=8000, sure=False))
    one = (Change("machines", "H100 at cellar (owned)", 4, 2),)
    assert in_words((two, one)).splitlines() == [
        "What would allow a plan, the least change first:",
        "1. all of this:",
        "   - 3 machines instead of 1 that may come or go between two periods",
        "   - a budget of 9,200 USD (perhaps less) instead of 8,000 USD",
        "2. or 2 more H100 at cellar (owned): 4 instead of 2",
    ]
