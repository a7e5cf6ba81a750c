"""Machines and policies on simulated time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stoa.fleet.policies.facts import Decision, Slo, Snapshot
from stoa.simulator import InvalidTrace, Options, Requests, Result, SpotTrace, Zone, simulate
from tests.simulator.worlds import STEP_S, Constant, Script, drain, launch, poisson, profile, requests

SLO = Slo(2.0)
ONE_ZONE = (Zone("a", on_demand_hourly=3.6, startup_s=30.0),)


def run(trace: Requests, policy: Any, zones: Any = ONE_ZONE, **more: Any) -> Result:
    steps = more.pop("profile", profile())
    options = Options(**{"record": len(trace)} | more.pop("options", {}))
    return simulate([trace], zones, steps, policy, slo=SLO, options=options, **more)


def spot_zone(*counts: int, gap_s: float = 100.0, name: str = "a", startup_s: float = 30.0) -> Zone:
    return Zone(name, None, 1.0, SpotTrace(gap_s, np.array(counts)), startup_s)


def test_a_machine_is_paid_by_the_second_from_launch_to_end() -> None:
    """One that is drained at 60 s with nothing to do costs a minute, one that stays costs until the end."""
    policy = Script({0.0: launch(2), 60.0: drain(0)})
    result = run(requests((1.0, 1, 1)), policy, until_s=200.0)
    assert result.cost_usd == pytest.approx(3.6 / 3600 * (60 + 200))
    assert result.machine_hours == {"on_demand": pytest.approx(260 / 3600)}


def test_nothing_before_the_measured_part_counts() -> None:
    """Neither money nor requests nor launches."""
    result = run(
        requests((5.0, 1, 1), (150.0, 1, 1)), Constant(1), until_s=200.0, options={"measure_from_s": 100.0}
    )
    assert result.cost_usd == pytest.approx(3.6 / 3600 * 100)
    assert (result.requests, result.launches, result.attainment) == (1, 0, 1.0)


def test_requests_are_held_until_a_replica_is_ready() -> None:
    """From zero replicas, the first token comes a startup and a step after the launch."""

    def on_demand(seen: Snapshot) -> Decision:
        return launch()(seen) if seen.demand.held and not seen.replicas else Decision()

    policy = Script({10.0 * i: on_demand for i in range(20)})
    result = run(requests((12.0, 1, 1)), policy, until_s=190.0)
    assert result.first_s is not None
    assert result.first_s[0] == pytest.approx(20.0 + 30.0 + STEP_S)
    assert policy.seen[2].demand.oldest_wait_s == pytest.approx(8.0)
    assert result.attainment == 0.0


def test_a_launch_without_capacity_is_refused_and_the_policy_can_tell() -> None:
    """A zone with two machines gives two of three."""
    policy = Script({0.0: launch(3)})
    result = run(requests((1.0, 1, 1)), policy, [spot_zone(2)], until_s=20.0)
    assert (result.launches, result.refusals) == (2, 1)
    offer = policy.seen[1].offers[0]
    assert offer.launched_s == offer.refused_s == 0.0
    assert len(policy.seen[1].replicas) == 2


def test_a_notice_moves_requests_away_before_the_machine_goes() -> None:
    """The policy sees when the machine will end, and the answer goes on elsewhere after one more prompt."""
    zones = [spot_zone(1, 0, 0, 0, name="a"), spot_zone(1, name="b")]
    policy = Script({0.0: lambda seen: Decision([*launch(1)(seen).launch, *launch(1, 1)(seen).launch])})
    trace = requests((40.0, 7, 2000), (40.1, 7, 2000))
    result = run(
        trace, policy, zones, until_s=200.0, options={"notice_s": 20.0}, profile=profile(decode_row_s=1e-5)
    )
    replica = next(r for s in policy.seen if s.now_s == 80.0 for r in s.replicas if r.offer.zone == "a")
    assert (replica.state, replica.ends_s, replica.running) == ("draining", 100.0, 0)
    assert (result.preemptions, result.moved, result.unserved) == (1, 1, 0)
    assert result.stall_max_s == pytest.approx(STEP_S, abs=2.1 * STEP_S)
    assert result.end_s is not None
    assert result.end_s - trace.arrival_s == pytest.approx(2000 * STEP_S, rel=0.01)
    assert result.machine_hours["spot"] < (80 + 200 + 1) / 3600


def test_a_machine_that_goes_without_notice_loses_nothing() -> None:
    """Its answer is held, and goes on from its tokens when there is another machine."""
    zones = [spot_zone(1, 0, 1, 1)]
    policy = Script({0.0: launch(), 200.0: launch()})
    result = run(requests((40.0, 7, 1300)), policy, zones, until_s=390.0, options={"notice_s": 0.0})
    assert result.end_s is not None
    had = math.floor((100 - 40) / STEP_S)
    assert result.end_s[0] == pytest.approx(230 + (1300 - had) * STEP_S, abs=3 * STEP_S)
    assert result.output_tokens == 1300
    assert result.stall_max_s == pytest.approx(130, abs=4 * STEP_S)


def test_handing_over_takes_its_time() -> None:
    """An idle replica that is drained is paid until its controller has heard of it."""
    quick, slow = (
        run(requests((1.0, 1, 1)), Script({0.0: launch(2), 50.0: drain(0)}), until_s=100.0, options=options)
        for options in ({}, {"handover_s": 7.0})
    )
    assert slow.cost_usd - quick.cost_usd == pytest.approx(3.6 / 3600 * 7)


def test_a_drained_replica_is_paid_until_its_requests_are_elsewhere() -> None:
    """With `finish` it stays until they have ended, unless its machine is about to go."""
    trace = requests((40.0, 1, 400))
    policy = {0.0: launch(2), 50.0: drain(0, 1), 55.0: launch()}
    migrate = run(trace, Script({**policy, 50.0: drain(0)}), until_s=100.0, profile=profile(prompt_row_s=1.0))
    finish = run(trace, Script({**policy, 50.0: drain(0)}), until_s=100.0, options={"drain": "finish"})
    for result in (migrate, finish):
        assert result.unserved == 0
    assert finish.moved == 0
    assert finish.cost_usd in (
        pytest.approx(3.6 / 3600 * (60 + 100)),  # the request was there
        pytest.approx(3.6 / 3600 * (50 + 100)),
    )


def test_the_last_replica_drained_finishes_what_it_has() -> None:
    """There is nowhere to go, so nothing is interrupted."""
    policy = Script({0.0: launch(), 50.0: drain(0)})
    result = run(requests((40.0, 1, 400)), policy, until_s=100.0)
    assert (result.moved, result.stalls, result.cost_usd) == (0, 0, pytest.approx(3.6 / 3600 * 60))


def test_a_warned_replica_serves_while_nobody_else_does() -> None:
    """Until another is ready or its machine goes; it is not given back for being idle meanwhile."""
    zones = [spot_zone(1, 0, 0, 0), spot_zone(1, name="b")]
    trace = requests((82.0, 1, 1), (95.0, 1, 400))
    policy = Script({0.0: launch(), 80.0: launch(1, 1)})
    result = run(trace, policy, zones, until_s=200.0, options={"notice_s": 20.0})
    assert result.first_s is not None
    assert result.first_s - trace.arrival_s == pytest.approx(STEP_S, abs=1e-6)
    assert result.stall_max_s == pytest.approx(110 - 100, abs=2 * STEP_S)
    assert result.availability == pytest.approx(1.0)


def test_a_starting_replica_is_given_back_at_once() -> None:
    """It is paid until then."""
    result = run(requests((1.0, 1, 1)), Script({0.0: launch(), 10.0: drain(0)}), until_s=100.0)
    assert result.cost_usd == pytest.approx(3.6 / 3600 * 10)


def test_a_policy_sees_nothing_of_the_future() -> None:
    """Two worlds that are alike until 400 s, and whose spot notices are, look alike until then."""
    looks = []
    for later in (1, 50):
        trace = poisson(2.0, 2000, seed=1, output=30)
        trace.output_tokens[trace.arrival_s > 400] *= later
        counts = [2, 1, 2, 2, 2] + ([0] * 5 if later == 1 else [2] * 5)
        policy = Script({0.0: launch(2), 250.0: launch(1)})
        run(trace, policy, [spot_zone(*counts)], options={"notice_s": 30.0}, until_s=900.0)
        looks.append([_plain(s) for s in policy.seen if s.now_s <= 400])
    assert looks[0] == looks[1]


def _plain(seen: Snapshot) -> Any:
    d = seen.demand
    series = (d.requests, d.prompt_tokens, d.output_tokens, d.in_flight, d.late)
    return seen.now_s, seen.replicas, seen.offers, [list(s) for s in series], d.held, d.oldest_wait_s


def test_demand_is_what_came_bin_by_bin_and_never_changes_afterwards() -> None:
    """Old views keep their values while new bins are added and the oldest are forgotten."""
    trace = poisson(3.0, 3000, seed=2, prompt=5, output=7)
    policy = Script({0.0: launch(2)})
    run(trace, policy, options={"history_s": 200.0})
    for seen in policy.seen:
        demand = seen.demand
        bins = len(demand.requests)
        assert bins == min(20, seen.now_s // 10)
        edges = seen.now_s - 10.0 * np.arange(bins, -1, -1)
        expected = np.histogram(trace.arrival_s, edges)[0]
        assert list(demand.requests) == expected.tolist()
        assert list(demand.prompt_tokens) == (5 * expected).tolist()
    total = sum(sum(s.demand.output_tokens[-1:]) for s in policy.seen)
    assert total == pytest.approx(3000 * 7, abs=300)


def test_lateness_is_known_as_soon_as_the_target_has_passed() -> None:
    """A request without a replica counts in the bin in which its time is over, once."""
    policy = Script({})
    run(requests((9.0, 1, 1), (15.0, 1, 1)), policy, until_s=50.0, options={"runout_s": 0.0})
    assert list(policy.seen[-1].demand.late) == [0, 2, 0, 0]


def test_unserved_requests_count_as_late_and_make_quantiles_infinite() -> None:
    """Nobody may look better by never answering."""
    result = run(poisson(1.0, 50, seed=1), Script({}), options={"runout_s": 30.0})
    assert (result.attainment, result.unserved) == (0.0, 50)
    assert result.ttft_p99_s == math.inf
    assert result.availability < 0.1
    assert result.to_json()["ttft"]["p99_s"] is None


@pytest.mark.parametrize("start_s", np.linspace(1.0, 1.2, 20))
def test_no_quantile_is_above_the_longest_time(start_s: float) -> None:
    """Though quantiles are known by bins only, and the longest one exactly."""
    zone = Zone("a", on_demand_hourly=3.6, startup_s=start_s)
    ttft = run(requests((0.0, 1, 1)), Constant(1), [zone], until_s=100.0).ttft
    assert ttft.p50_s <= ttft.p99_s <= ttft.max_s == pytest.approx(start_s + STEP_S)


def test_a_huge_burst_is_served_in_order() -> None:
    """Fifty thousand at the same moment wait in line; none is lost."""
    n = 50_000
    trace = requests(*([(40.0, 3, 2)] * n))
    result = run(trace, Constant(2), until_s=50.0, options={"runout_s": 1e5})
    assert result.unserved == 0
    assert result.first_s is not None
    assert (np.diff(np.sort(result.first_s)[:: 2 * 64]) >= 0).all()
    assert result.output_tokens == 2 * n


def test_chunks_are_one_trace() -> None:
    """How a trace is cut into chunks changes nothing."""
    trace = poisson(5.0, 2000, seed=3)
    whole = simulate([trace], ONE_ZONE, profile(), Constant(2), slo=SLO).to_json()
    cut = (trace.part(slice(i, i + 37)) for i in range(0, 2000, 37))
    assert simulate(cut, ONE_ZONE, profile(), Constant(2), slo=SLO).to_json() == whole


def test_no_request_at_all_is_a_world_without_requests() -> None:
    """An empty stream has a result, and no attainment to complain about."""
    result = simulate([], ONE_ZONE, profile(), Constant(1), slo=SLO, until_s=100.0)
    assert (result.requests, result.attainment) == (0, 1.0)


@pytest.mark.parametrize(
    "rows", [((5.0, 1, 1), (4.0, 1, 1)), ((math.nan, 1, 1),), ((-1.0, 1, 1),), ((1.0, 0, 1),), ((1.0, 1, 0),)]
)
def test_impossible_requests_are_refused(rows: Any) -> None:
    """Out of order, without a time, before the beginning, or without tokens."""
    with pytest.raises(InvalidTrace):
        run(requests(*rows), Constant(1))


def test_a_policy_that_drains_what_is_not_there_is_told() -> None:
    """A mistake of ours is not passed over."""
    with pytest.raises(ValueError, match="nobody"):
        run(requests((1.0, 1, 1)), Script({0.0: lambda seen: Decision(drain=["nobody"])}))


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    """Chance is an argument."""
    zones = [spot_zone(4, 1, 4, 2, 3), spot_zone(1, 4, 2, 4, 4, name="b")]
    trace = poisson(5.0, 3000, seed=3, output=60)
    steps = profile(decode_row_s=1e-3)
    found = [run(trace, Constant(5), zones, seed=s, profile=steps).to_json() for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
