"""A fleet that follows a plan: its replicas by period, and what demand asks for beyond."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.facts import Bounds, Demand, Offer, Slo
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.planned import Memory, Planned
from stoa.simulator import Options, Requests, SpotTrace, Zone, simulate
from tests.fleet.policies.fleets import ANY, PROFILE, World, offer, replica, seen, steady
from tests.fleet.policies.plans import GUARDED, HALVES, NOON_S, model_plan, target

OFFICE = offer("local", "on_demand", 0.2, startup_s=60.0)
A, B, DEAR = offer("a"), offer("b"), offer("a", "on_demand")
OFFERS = [OFFICE, A, B, DEAR]
NOBODY = Demand(10.0, [], [], [], [], [])
Counts = dict[tuple[str, str], int]


def office_and_cloud(**parts: Any) -> ModelPlan:
    """At night one machine in the office; by day two there and three spot machines; more on demand if need be."""
    targets = [
        target("office", "owned", [1, 2], 2),
        target("cloud", "spot", [0, 3], 6),
        target("cloud", "on_demand", [0, 0], 4),
    ]
    return model_plan({"targets": targets}, periods=HALVES, **parts)


def run(
    world: World,
    plan: ModelPlan,
    ticks: int,
    *,
    begins_s: float,
    demand: Demand = NOBODY,
    bounds: Bounds = ANY,
    memory: Memory | None = None,
) -> Memory:
    policy = Planned(plan, begins_s)
    memory = memory or policy.initial()
    for _ in range(ticks):
        decision, memory = policy.decide(world.look(demand, bounds), memory)
        world.carry_out(decision)
        world.now_s += demand.bin_s
    return memory


def there(world: World, state: str = "") -> Counts:
    """Replicas by zone and market."""
    return dict(
        Counter((r.offer.zone, r.offer.market) for r in world.replicas.values() if state in ("", r.state))
    )


def test_the_plan_is_there_though_nobody_asks() -> None:
    """Its replicas are a floor, spread over the zones of their place; nothing else is launched."""
    world = World(list(OFFERS))
    run(world, office_and_cloud(), 60, begins_s=NOON_S)
    assert there(world) == {("local", "on_demand"): 2, ("a", "spot"): 2, ("b", "spot"): 1}


def came(requests_per_s: float, hours: float = 1.0) -> Demand:
    """So many requests, all answered at once, over the last hours."""
    bins = round(hours * 360)
    return Demand(10.0, [10 * requests_per_s] * bins, [0.0] * bins, [0.0] * bins, [0.0] * bins, [0.0] * bins)


@pytest.mark.parametrize(
    ("night", "day", "asked", "share"), [(5.0, 5.0, 5.0, 1.0), (5.0, 5.0, 0.0, 0.2), (0.05, 5.0, 0.0, 0.97)]
)
def test_of_what_does_not_come_less_stands_ready(
    night: float, day: float, asked: float, share: float
) -> None:
    """An hour without the requests that were planned for leaves a fifth of the floor; one as planned leaves it whole, and so
    does a quiet night before the day."""
    targets = [target("cloud", "on_demand", [10, 10])]
    plan = model_plan({"targets": targets, "demand": [night, day]}, periods=HALVES)
    world = World([DEAR])
    run(world, plan, 1, begins_s=NOON_S, demand=came(asked))
    assert sum(there(world).values()) == np.ceil(10 * share)


def test_replicas_are_ready_when_their_period_begins() -> None:
    """They are launched a startup time before it, and not sooner."""
    world, plan = World(list(OFFERS)), office_and_cloud()
    memory = run(world, plan, 40, begins_s=NOON_S - 600)
    assert there(world) == {("local", "on_demand"): 1}  # 200 s before noon
    run(world, plan, 20, begins_s=NOON_S - 600, memory=memory)
    world.look(NOBODY, Bounds())
    assert world.now_s == 600.0
    assert sum(there(world, "ready").values()) == 5


def test_replicas_of_a_period_that_is_over_go() -> None:
    """But only once as many as are needed now are ready elsewhere."""
    targets = [target("office", "owned", [0, 2], 2), target("cloud", "spot", [3, 0], 6)]
    plan = model_plan({"targets": targets}, periods=HALVES)
    slow = offer("local", "on_demand", 0.2, startup_s=60.0)
    world = World([slow, A, B])
    memory = run(world, plan, 40, begins_s=NOON_S - 400)
    assert there(world) == {("a", "spot"): 2, ("b", "spot"): 1, ("local", "on_demand"): 2}
    memory = run(world, plan, 5, begins_s=NOON_S - 400, memory=memory)
    assert there(world) == {("local", "on_demand"): 2}
    for r in list(world.replicas.values()):  # these die: none is drained for it, all come again
        del world.replicas[r.id]
    run(world, plan, 2, begins_s=NOON_S - 400, memory=memory)
    assert there(world) == {("local", "on_demand"): 2}


def test_late_replicas_are_waited_for() -> None:
    """What the last period leaves behind serves until this one's are ready."""
    targets = [target("office", "owned", [0, 2], 2), target("cloud", "spot", [2, 0], 6)]
    plan = model_plan({"targets": targets}, periods=HALVES)
    old = [replica("r1", A), replica("r2", A)]
    new = [replica("r3", OFFICE, "starting"), replica("r4", OFFICE, "starting")]
    look = seen([*old, *new], OFFERS, demand=NOBODY)
    decision, _ = Planned(plan, NOON_S).decide(look, Memory())
    assert (decision.launch, decision.drain) == ((), ())
    half = [new[0], replica("r4", OFFICE)]
    decision, _ = Planned(plan, NOON_S).decide(seen([*old, *half], OFFERS, demand=NOBODY), Memory())
    assert len(decision.drain) == 1


def test_demand_beyond_the_plan_gets_more() -> None:
    """Where it is cheapest, and no more than the plan leaves room for anywhere."""
    world = World(list(OFFERS))
    memory = run(world, office_and_cloud(), 100, begins_s=NOON_S, demand=steady(400))
    assert sum(there(world).values()) > 5
    assert ("a", "on_demand") not in there(world)
    run(world, office_and_cloud(), 200, begins_s=NOON_S, demand=steady(4000), memory=memory)
    found = there(world)
    assert found["a", "spot"] + found["b", "spot"] == 6
    assert (found["local", "on_demand"], found["a", "on_demand"]) == (2, 4)


def test_offers_that_the_plan_does_not_name_are_not_used() -> None:
    """However cheap they are."""
    bargain = offer("elsewhere", "spot", 0.01)
    world = World([*OFFERS, bargain])
    run(world, office_and_cloud(), 100, begins_s=NOON_S, demand=steady(400))
    assert ("elsewhere", "spot") not in there(world)


def test_spot_machines_that_vanish_are_replaced() -> None:
    """By on-demand ones while spot is refused; which go when spot is back."""
    world, plan = World(list(OFFERS)), office_and_cloud()
    memory = run(world, plan, 60, begins_s=NOON_S)
    world.lose("a")
    world.lose("b")
    memory = run(world, plan, 30, begins_s=NOON_S, memory=memory)
    assert there(world, "ready") == {("local", "on_demand"): 2, ("a", "on_demand"): 3}
    world.closed.clear()
    run(world, plan, 60, begins_s=NOON_S, memory=memory)
    assert there(world) == {("local", "on_demand"): 2, ("a", "spot"): 2, ("b", "spot"): 1}


def often_away(**parts: Any) -> ModelPlan:
    """Two spot machines of each zone, there seven tenths of the time."""
    places = [{"name": "a"}, {"name": "b"}, {"name": "office", "zones": ["local"]}]
    targets = [target(zone, "spot", [2], 4) | {"availability": 0.7} for zone in "ab"]
    return model_plan({"targets": [*targets, target("a", "on_demand", [0], 4)]}, places=places, **parts)


def test_no_more_stand_than_the_plan_counts_on() -> None:
    """Of 4 spot machines it counts on 2.8: so 3 are there, one at each place at least, and none on demand."""
    world = World(list(OFFERS))
    run(world, often_away(), 60, begins_s=0)
    found = there(world)
    assert (sum(found.values()), found["a", "spot"] >= 1, found["b", "spot"] >= 1) == (3, True, True)
    assert ("a", "on_demand") not in found


def test_only_what_was_counted_on_is_replaced() -> None:
    """With one zone gone the other gives what it can; with both gone machines on demand stand in, for 3 and not 4."""
    world, plan = World(list(OFFERS)), often_away()
    memory = run(world, plan, 60, begins_s=0)
    world.lose("a")
    memory = run(world, plan, 60, begins_s=0, memory=memory)
    assert there(world) == {("b", "spot"): 3}
    world.lose("b")
    run(world, plan, 60, begins_s=0, memory=memory)
    assert there(world) == {("a", "on_demand"): 3}


def test_with_residency_all_that_was_asked_for_stands_at_its_place() -> None:
    """Replicas elsewhere would be of no use to those who may not be served there."""
    world = World(list(OFFERS))
    run(world, often_away(groups=GUARDED), 60, begins_s=0)
    assert there(world) == {("a", "spot"): 2, ("b", "spot"): 2}


def test_a_restricted_group_has_a_replica_while_it_asks() -> None:
    """Within its places, and for a while after; not where it may not be served."""
    targets = [target("office", "owned", [0], 2), target("cloud", "spot", [1], 4)]
    plan = model_plan({"targets": targets}, groups=GUARDED)
    world, bounds = World(list(OFFERS)), Bounds(idle_s=200.0)
    memory = run(world, plan, 20, begins_s=0, bounds=bounds)
    assert ("local", "on_demand") not in there(world)
    asks = Demand(10.0, [], [], [], [], [], held=1, confined={"office": 1})
    memory = run(world, plan, 20, begins_s=0, bounds=bounds, demand=asks, memory=memory)
    assert there(world)["local", "on_demand"] == 1
    memory = run(world, plan, 15, begins_s=0, bounds=bounds, memory=memory)
    assert there(world)["local", "on_demand"] == 1
    run(world, plan, 15, begins_s=0, bounds=bounds, memory=memory)
    assert there(world) == {("a", "spot"): 1}


def test_replicas_stay_while_offers_are_not_known() -> None:
    """A backend that cannot say what there is does not end what is there."""
    there = [replica("r1", OFFICE), replica("r2", OFFICE), *(replica(f"r{i}", A) for i in (3, 4, 5))]
    look = seen(there, (), demand=NOBODY)
    decision, _ = Planned(office_and_cloud(), NOON_S).decide(look, Memory())
    assert (decision.launch, decision.drain) == ((), ())


def test_a_fleet_that_the_plan_does_not_know_scales_by_demand() -> None:
    """As without one."""
    world = World([offer("moon", "on_demand")])
    run(world, office_and_cloud(), 30, begins_s=NOON_S, demand=steady(100))
    assert world.replicas


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3),
    requests=st.sampled_from([0.0, 20.0, 300.0, 3000.0]),
    closed=st.sets(st.sampled_from("ab")),
    most=st.integers(1, 12),
    half=st.booleans(),
)
def test_what_the_plan_allows_is_never_exceeded(
    counts: list[tuple[int, int]], requests: float, closed: set[str], most: int, half: bool
) -> None:
    """Whatever is asked for and wherever spot is closed: no pool above its most, and no more than the bounds; in the end,
    what can be had of the plan is there."""
    pools = [("office", "owned"), ("cloud", "spot"), ("cloud", "on_demand")]
    targets = [target(*p, [n, n], n + more) for p, (n, more) in zip(pools, counts, strict=True)]  # type: ignore[arg-type]
    plan = model_plan({"targets": targets}, periods=HALVES)
    world, bounds = World(list(OFFERS), closed=set(closed)), Bounds(0, most)
    memory, limits = None, [n + more for n, more in counts]
    for _ in range(60):
        memory = run(
            world, plan, 1, begins_s=NOON_S * half, demand=steady(requests), bounds=bounds, memory=memory
        )
        found = there(world)
        spot = found.get(("a", "spot"), 0) + found.get(("b", "spot"), 0)
        dear = found.get(("a", "on_demand"), 0)
        mine = [found.get(("local", "on_demand"), 0), spot, dear]
        assert all(n <= limit for n, limit in zip(mine, limits, strict=True))
        assert sum(mine) <= most
    wanted = counts[0][0] + counts[2][0] + (counts[1][0] if closed != {"a", "b"} else 0)
    assert sum(mine) >= min(most, wanted)


def test_it_runs_in_the_simulator() -> None:
    """The plan's machine hours are paid, and a lost zone is stood in for."""
    rng = np.random.default_rng(0)
    at_s = np.sort(rng.uniform(0, 7200, 3000))
    trace = Requests(at_s, np.full(3000, 300, np.int32), np.full(3000, 50, np.int32))
    zones = [
        Zone("local", 0.2, None, None, 60.0),
        Zone("a", 1.0, 0.3, SpotTrace(1800.0, np.array([4, 0, 0, 4])), 120.0),
    ]
    targets = [
        target("office", "owned", [1, 1], 1),
        target("cloud", "spot", [1, 2], 4),
        target("cloud", "on_demand", [0, 0], 4),
    ]
    plan = model_plan({"targets": targets}, periods=HALVES)
    result = simulate(
        [trace], zones, PROFILE, Planned(plan, NOON_S - 3600), slo=Slo(2.0), until_s=7200.0,
        options=Options(measure_from_s=600.0),
    )  # fmt: skip
    assert result.attainment > 0.99
    assert result.preemptions >= 1
    assert result.machine_hours["on_demand"] > 6600 / 3600 + 0.2
    assert result.machine_hours["spot"] > 1.0


@pytest.mark.parametrize("held", [0, 5])
def test_decisions_are_a_function_of_what_is_seen(held: int) -> None:
    """The same snapshot and memory give the same decision."""
    plan = office_and_cloud()
    look = seen([replica("r1", A)], OFFERS, demand=steady(100, held=held))
    first = Planned(plan, NOON_S).decide(look, Memory())[0]
    assert first == Planned(plan, NOON_S).decide(look, Memory())[0]


def test_offers_are_those_of_the_snapshot() -> None:
    """What is launched is an offer that was seen, object by object."""
    look = seen((), OFFERS, demand=NOBODY)
    decision, _ = Planned(office_and_cloud(), NOON_S).decide(look, Memory())
    known: set[Offer] = {o.offer for o in look.offers}
    assert {x.offer for x in decision.launch} <= known
