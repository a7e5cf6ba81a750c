"""The autoscaler as a whole, on demands and fleets that tests make up."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.autoscaler import Elastic, Memory
from stoa.fleet.policies.facts import Bounds, Decision, Demand, Snapshot
from tests.fleet.policies.fleets import World, offer, replica, seen, steady

LOCAL = offer("local", "on_demand", 0.0, startup_s=5.0)
CLOUD = [offer(z) for z in "abc"] + [offer("a", "on_demand")]


def run(world: World, demand: Demand, ticks: int, bounds: Bounds, memory: Memory | None = None) -> Memory:
    memory = memory or Elastic().initial()
    for _ in range(ticks):
        decision, memory = Elastic().decide(world.look(demand, bounds), memory)
        world.carry_out(decision)
        world.now_s += demand.bin_s
    return memory


def test_a_single_local_replica_is_left_alone() -> None:
    """At least one and at most one: whatever is asked for, nothing is decided."""
    for demand in (steady(0, bin_s=1.0), steady(100, bin_s=1.0, held=50, late=100.0)):
        look = seen([replica("l", LOCAL)], [LOCAL], demand=demand, bounds=Bounds(1, 1))
        decision, memory = Elastic().decide(look, Elastic().initial())
        assert (decision.launch, decision.drain) == ((), ())
        decision, _ = Elastic().decide(look, memory)
        assert (decision.launch, decision.drain) == ((), ())


def test_nothing_is_launched_before_anybody_asks() -> None:
    """With none at least, a fleet begins with none."""
    decision, _ = Elastic().decide(seen((), [LOCAL]), Elastic().initial())
    assert decision.launch == ()


def test_the_first_request_starts_a_replica() -> None:
    """From zero, a request that is held is enough."""
    demand = Demand(1.0, [], [], [], [], [], held=1)
    decision, _ = Elastic().decide(seen((), [LOCAL], demand=demand), Elastic().initial())
    assert [(x.offer, x.count) for x in decision.launch] == [(LOCAL, 1)]


def test_an_idle_fleet_goes_after_its_idle_time_and_not_before() -> None:
    """The last replica outlives the last request by `idle_s`."""
    world, bounds = World([LOCAL]), Bounds(0, 4, idle_s=60.0)
    memory = run(world, steady(5, bin_s=1.0), 40, bounds)
    assert world.replicas
    memory = run(world, steady(0, bin_s=1.0), 50, bounds, memory)
    assert world.replicas
    run(world, steady(0, bin_s=1.0), 20, bounds, memory)
    assert not world.replicas


def test_a_running_request_keeps_its_replica() -> None:
    """Idle is a fleet without requests, however long none has arrived."""
    look = seen([replica("l", LOCAL, running=1)], [LOCAL], demand=steady(0), bounds=Bounds(idle_s=60.0))
    assert Elastic().decide(look, Elastic().initial())[0].drain == ()


def test_steady_demand_settles() -> None:
    """Constant demand ends in constant replicas, none on demand, hardly more than the load."""
    world, demand = World(list(CLOUD)), steady(400)
    memory = run(world, demand, 400, Bounds())
    before = dict(world.replicas)
    run(world, demand, 20, Bounds(), memory)
    assert {r.id for r in before.values()} == {r.id for r in world.replicas.values()}
    assert all(r.offer.market == "spot" for r in world.replicas.values())


@settings(deadline=None, max_examples=20)
@given(st.floats(1, 2000), st.floats(1, 2000))
def test_more_demand_never_gets_fewer_replicas(one: float, other: float) -> None:
    """After the same time, the greater of two steady demands has at least as many."""
    sizes = []
    for requests in sorted((one, other)):
        world = World([offer("a", "on_demand")])
        run(world, steady(requests), 30, Bounds())
        sizes.append(len(world.replicas))
    assert sizes[0] <= sizes[1]


def test_requests_that_wait_ask_for_more() -> None:
    """Held requests are worked off by replicas beyond what arrivals need."""
    calm, _ = Elastic().decide(seen((), CLOUD, demand=steady(100)), Elastic().initial())
    queue, _ = Elastic().decide(seen((), CLOUD, demand=steady(100, held=5000)), Elastic().initial())
    assert launches(queue) > launches(calm)


def launches(decision: Decision) -> int:
    return sum(x.count for x in decision.launch)


def test_late_requests_lower_the_budget_and_timely_ones_raise_it() -> None:
    """What rules may be late follows what has been late, between its limits."""
    start = Elastic().initial().budget
    _, late = Elastic().decide(seen((), CLOUD, demand=steady(100, bins=2000, late=50.0)), Elastic().initial())
    _, timely = Elastic().decide(seen((), CLOUD, demand=steady(100, bins=2000)), Elastic().initial())
    assert 0.2 <= late.budget < start < timely.budget <= 0.6


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    amounts = st.lists(st.floats(0, 1e4), min_size=0, max_size=40)
    requests = draw(amounts)
    scale = draw(st.floats(0, 1000))
    tokens = [n * scale for n in requests]
    late = [n * 0.5 for n in requests]
    demand = Demand(10.0, requests, tokens, tokens, requests, late, held=draw(st.integers(0, 10_000)))
    least = draw(st.integers(0, 3))
    fleet = [
        replica(f"r{k}", draw(st.sampled_from(CLOUD)), draw(st.sampled_from(["starting", "ready"])))
        for k in range(draw(st.integers(0, 6)))
    ]
    return seen(
        fleet,
        CLOUD,
        now_s=draw(st.floats(0, 1e6)),
        demand=demand,
        bounds=Bounds(least, draw(st.integers(least, 30))),
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(snapshots(), min_size=1, max_size=4))
def test_decisions_stay_in_bounds_whatever_is_seen(looks: list[Snapshot]) -> None:
    """Times that jump, demand out of the blue, no demand at all: launches stay below the most, and a fleet at the least is
    not drained below it."""
    memory = Elastic().initial()
    for look in looks:
        decision, memory = Elastic().decide(look, memory)
        there = len(look.replicas)
        assert launches(decision) == 0 or there + launches(decision) <= look.bounds.max_replicas
        ready = {r.id for r in look.replicas if r.state == "ready"}
        left = len(ready - set(decision.drain))
        assert left >= min(len(ready), look.bounds.min_replicas)


def test_deciding_is_pure() -> None:
    """The same look and memory give the same decision, and neither is changed."""
    look = seen([replica("x", CLOUD[0])], CLOUD, demand=steady(300))
    _, memory = Elastic().decide(look, Elastic().initial())
    before = copy.deepcopy(memory)
    later = seen([replica("x", CLOUD[0])], CLOUD, now_s=1010.0, demand=steady(900))
    assert Elastic().decide(later, memory)[0] == Elastic().decide(later, memory)[0]
    assert memory.rehearsal is not None
    assert before.rehearsal is not None
    assert np.array_equal(memory.rehearsal.asked, before.rehearsal.asked)


@pytest.mark.parametrize("tick_s", [1.0, 2.5, 10.0, 25.0])
def test_bins_are_taken_in_once_whatever_the_ticks(tick_s: float) -> None:
    """Looks more or less frequent than bins hear each bin once."""
    memory = Elastic().initial()
    for k in range(1, 101):
        look = seen((), CLOUD, now_s=k * tick_s, demand=steady(10, bins=int(k * tick_s // 10)))
        _, memory = Elastic().decide(look, memory)
    assert memory.rehearsal is not None
    assert memory.rehearsal.signal.seen_s == pytest.approx(100 * tick_s, abs=20.0)


def test_a_clock_that_jumps_is_followed() -> None:
    """After a jump back, new bins are heard again at once."""
    _, memory = Elastic().decide(seen((), CLOUD, now_s=1e6, demand=steady(10)), Elastic().initial())
    _, memory = Elastic().decide(seen((), CLOUD, now_s=50.0, demand=steady(10)), memory)
    assert memory.rehearsal is not None
    heard_s = memory.rehearsal.signal.seen_s
    _, memory = Elastic().decide(seen((), CLOUD, now_s=60.0, demand=steady(10)), memory)
    assert memory.rehearsal is not None
    assert memory.rehearsal.signal.seen_s == heard_s + 10.0
