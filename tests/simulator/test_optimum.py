"""The clairvoyant bound: equal to brute force on tiny cases, below every run of every policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.facts import Autoscaler, Slo
from stoa.fleet.policies.profile import Profile
from stoa.programs import NoOptimum
from stoa.simulator import Options, Requests, SpotTrace, Zone, simulate
from stoa.simulator.baselines import (
    Both,
    Hpa,
    Knative,
    OnDemand,
    RequestRate,
    SageServe,
    SpotHedge,
    StaticPeak,
)
from stoa.simulator.baselines.clairvoyant import Clairvoyant
from stoa.simulator.optimum import Supply, bound, levels, lower_bound, supplies
from stoa.simulator.optimum_plan import Course, choose, follow, in_order_plan
from stoa.simulator.optimum_plan import course as course_of
from stoa.simulator.optimum_work import Curves, curves, row_work

pytest.importorskip("highspy", reason="pip install 'stoa[planner]' for the solver")

PROFILE = Profile(
    name="small",
    fixed_s=0.02,
    prompt_row_s=2e-4,
    decode_row_s=1e-3,
    context_token_s=1e-7,
    max_num_seqs=16,
    max_batch_tokens=256,
)
SLO = Slo(ttft_s=2.0)


def work(arrived: Sequence[float], slack: Sequence[float], bin_s: float = 60.0) -> Curves:
    """Nobody may be late; of what has arrived by a bin's end, `slack` may still be undone."""
    total = np.asarray(arrived, np.float64)
    due = np.maximum.accumulate(np.maximum(0.0, total - np.asarray(slack)))
    none = np.zeros((1, len(total)))
    return Curves(bin_s, total, due, np.zeros(len(total)), none, none, 0.0, len(total))


def brute_force(w: Curves, offers: Sequence[Supply]) -> float:
    """The cheapest of all plans in whole replicas, each tried: work is done as early as it can be."""
    best = math.inf
    rows = []
    for s in offers:
        most = 3 if s.capacity is None else int(s.capacity.max())
        every = itertools.product(range(most + 1), repeat=w.bins)
        rows.append([(cost, row) for row in every if (cost := cost_of(s, row, w.bin_s)) < math.inf])
    for plan in itertools.product(*rows):
        cost = sum(c for c, _ in plan)
        if cost < best and serves(w, [sum(n) for n in zip(*(row for _, row in plan), strict=True)]):
            best = cost
    return best


def cost_of(s: Supply, row: Sequence[int], bin_s: float) -> float:
    ahead = int(s.startup_s // bin_s)
    started = [max(0, n - before) for n, before in zip(row, (0, *row), strict=False)]
    for b, n in enumerate(row):
        machines = n + sum(started[b + 1 : b + 1 + ahead])
        if (n and b < ahead) or (s.capacity is not None and machines > s.capacity[b]):
            return math.inf
    return s.hourly / 3600.0 * (bin_s * sum(row) + s.startup_s * sum(started))


def serves(w: Curves, ready: Sequence[int]) -> bool:
    done = 0.0
    for b, n in enumerate(ready):
        done = min(float(w.arrived[b]), done + n * w.bin_s)
        if done < w.due[b] - 1e-9:
            return False
    return True


@settings(max_examples=20, deadline=None)
@given(
    come=st.lists(st.integers(0, 150), min_size=3, max_size=4),
    slack=st.lists(st.integers(0, 80), min_size=4, max_size=4),
    capacity=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    startup_bins=st.integers(0, 1),
)
def test_in_whole_replicas_it_equals_brute_force(
    come: list[int], slack: list[int], capacity: list[int], startup_bins: int
) -> None:
    """On tiny cases the integer program finds what trying every plan finds, and the linear one is not above it."""
    come = [0, *come] if startup_bins else come
    n = len(come)
    slack, capacity = (slack * 2)[:n], (capacity * 2)[:n]
    w = work(np.cumsum(come).tolist(), slack)
    offers = [
        Supply("a", "spot", 1.0, 60.0 * startup_bins, np.array(capacity, np.float64)),
        Supply("a", "on_demand", 3.0, 60.0 * startup_bins),
    ]
    best = brute_force(w, offers)
    if best == math.inf:
        return  # more than three replicas on demand
    whole, parts = bound(w, offers, integer=True), bound(w, offers)
    assert whole.cost_usd == pytest.approx(best, abs=1e-6)
    assert parts.cost_usd <= best + 1e-6


def test_a_replica_pays_for_its_start() -> None:
    """One bin of work costs the bin and the startup before it."""
    w = work([0.0, 0.0, 60.0, 60.0], [0.0] * 4)
    best = bound(w, [Supply("a", "on_demand", 3600.0, 120.0)])
    assert best.cost_usd == pytest.approx(180.0)
    assert best.hours == pytest.approx(180.0 / 3600.0)


def test_a_short_gap_is_bridged_and_a_long_one_is_not() -> None:
    """Replicas are kept through a gap that is shorter than a startup."""
    for gap, expected in ((1, 3 + 1), (9, 2 + 2 * 2)):
        arrived = np.cumsum([0.0, 0.0, 60.0, *[0.0] * gap, 60.0])
        best = bound(work(arrived.tolist(), [0.0] * len(arrived)), [Supply("a", "on_demand", 60.0, 120.0)])
        assert best.cost_usd == pytest.approx(expected + (2 if gap == 1 else 0) - (1 if gap == 1 else 0))


def test_work_never_weighs_more_than_the_steps_that_do_it() -> None:
    """Filled to the brim, steps take exactly the work of their rows; otherwise longer."""
    requests = Requests(np.zeros(16), np.full(16, 16, np.int32), np.full(16, 11, np.int32))
    parts = row_work(PROFILE, requests)
    steps = PROFILE.step_s(256, 0)
    steps += sum(PROFILE.step_s(0, 16, 16 * (16 + j)) for j in range(1, 11))
    assert sum(float(p.sum()) for p in parts) == pytest.approx(steps, rel=1e-9)


def test_curves_lie_in_order() -> None:
    """What is overdue is due, what is due has arrived; the last of a request is due when its last token is."""
    requests = poisson(np.random.default_rng(1), 5.0, 600.0)
    c = curves(requests, PROFILE, SLO, bins=20, bin_s=30.0)
    assert np.all(c.overdue <= c.due + 1e-9)
    assert np.all(c.due <= c.arrived + 1e-9)
    assert c.late_allowed == pytest.approx(math.floor(0.01 * len(requests)))


def test_prompts_that_nobody_can_answer_in_time_use_up_what_may_be_late() -> None:
    """If more than one in a hundred prompts take longer than the target, there is no optimum."""
    requests = Requests(np.arange(10.0), np.full(10, 50_000, np.int32), np.full(10, 1, np.int32))
    with pytest.raises(NoOptimum):
        lower_bound(requests, [Zone("a", 1.0)], PROFILE, SLO, until_s=600.0)


def test_capacity_is_averaged_over_bins() -> None:
    """A bin half of which has two machines has one on average, two at most."""
    spot = SpotTrace(90.0, np.array([2, 0]))
    assert levels(spot, 3, 60.0).tolist() == [2.0, 1.0, 0.0]
    assert levels(spot, 3, 60.0, most=True).tolist() == [2.0, 2.0, 0.0]
    assert levels(spot, 1, 60.0, from_s=60.0).tolist() == [1.0]


def test_dearer_offers_are_left_out() -> None:
    """Of on-demand offers the one that is beaten in price and startup is no choice."""
    zones = [Zone("a", 3.0, startup_s=60.0), Zone("b", 4.0, startup_s=60.0), Zone("c", 5.0, startup_s=10.0)]
    assert [s.zone for s in supplies(zones, bins=2, bin_s=60.0)] == ["a", "c"]


# -- plans


def paid(c: Course, plan: Sequence[int]) -> tuple[float, float]:
    """(replica-seconds, late requests) of a plan in bins of one part."""
    undone, before, seconds, late, behind = 0.0, 0, 0.0, 0.0, False
    for t, n in enumerate(plan):
        if n and t * c.part_s < c.startup_s:
            return math.inf, math.inf
        seconds += c.part_s * n + c.startup_s * max(0, n - before)
        undone = max(0.0, undone + float(c.come[t]) - n * c.part_s)
        late += float(c.arrivals[t]) * (behind and undone > c.allowed[t])
        before, behind = n, undone > c.allowed[t]
    return seconds, late


@settings(max_examples=30, deadline=None)
@given(
    come=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    allowed=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    arrivals=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    startup=st.integers(0, 2),
    price=st.floats(0.1, 20.0),
)
def test_a_plan_is_the_best_of_all(
    come: list[int], allowed: list[int], arrivals: list[int], startup: int, price: float
) -> None:
    """Where work comes in whole grains, no other plan costs less at the same price of being late."""
    tens = [10.0 * np.array(x, np.float64) for x in (come, allowed)]
    c = Course(*tens, np.array(arrivals, np.float64), 10.0, 1, 10.0 * startup, 3, 10.0, 40)
    found = follow(c, choose(c, price))
    seconds, late = paid(c, found.replicas)
    assert (found.replica_s, found.late) == (pytest.approx(seconds), pytest.approx(late))
    every = (paid(c, plan) for plan in itertools.product(range(4), repeat=5))
    assert seconds + price * late == pytest.approx(min(s + price * x for s, x in every if s < math.inf))


def test_a_plan_keeps_its_late_requests_and_the_bound_below_it() -> None:
    """The plan for a trace has few enough late requests and costs more than the bound."""
    requests = poisson(np.random.default_rng(3), 8.0, 1800.0)
    allowed = 0.03 * len(requests)
    c = course_of(requests, PROFILE, SLO, until_s=1800.0, startup_s=30.0, most=8, grains=200)
    plan = in_order_plan(c, late_allowed=allowed)
    assert plan.late <= allowed
    slack = Slo(SLO.ttft_s, 0.97)
    best = lower_bound(requests, [Zone("a", 3600.0, startup_s=30.0)], PROFILE, slack, until_s=1800.0)
    assert plan.replica_s >= best.cost_usd


# -- against runs


def poisson(rng: np.random.Generator, per_s: float, until_s: float) -> Requests:
    """With a burst of four times the rate in the middle."""
    at_s = rng.uniform(0.0, until_s, int(per_s * until_s))
    burst = rng.uniform(0.45 * until_s, 0.45 * until_s + 30.0, int(4 * per_s * 30.0))
    at_s = np.sort(np.concatenate([at_s, burst]))
    prompt = rng.lognormal(4.5, 1.0, len(at_s)).clip(1, 4000).astype(np.int32)
    output = rng.geometric(1 / 20, len(at_s)).astype(np.int32)
    return Requests(at_s, prompt, output)


def policies() -> list[Autoscaler[Any]]:
    places = (OnDemand(), SpotHedge(extra=0))
    scalers = [StaticPeak(n) for n in (1, 2, 3, 5, 8, 16)]
    scalers += [Hpa(target_in_flight=t, down_window_s=60.0) for t in (3.0, 8.0)]  # type: ignore[misc]
    scalers += [
        Knative(container_concurrency=6.0),
        RequestRate(4.0, upscale_delay_s=0.0),
        SageServe(load=0.4),
    ]  # type: ignore[list-item]
    return [Both(s, p) for s in scalers for p in places]


def zones(rng: np.random.Generator, startup_s: float) -> list[Zone]:
    return [
        Zone(
            name,
            3.0,
            1.0,
            SpotTrace(195.0, rng.integers(0, 5, 40), offset_s=float(rng.uniform(0, 4000))),
            60.0,
        )
        for name in "abc"
    ]


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_no_run_that_keeps_the_target_is_cheaper(seed: int) -> None:
    """Of all policies' runs on a random world, those with 99 % in time cost at least the bound, coarse, fine or steady."""
    rng = np.random.default_rng(seed)
    until_s, from_s, startup_s = 3600.0, *((600.0, 60.0), (600.0, 120.0), (0.0, 20.0))[seed]
    requests, world = poisson(rng, float(rng.uniform(2.0, 25.0)), until_s), zones(rng, startup_s)
    bounds = [
        lower_bound(requests, world, PROFILE, SLO, until_s=until_s, from_s=from_s, **how)  # type: ignore[arg-type]
        for how in ({}, {"bin_s": 20.0}, {"bin_s": 10.0, "steady": True, "parts": 5})
    ]
    assert all(b.cost_usd > 0 for b in bounds)
    least = max(b.cost_usd for b in bounds)
    kept = 0
    for policy in [
        *policies(),
        Both(Clairvoyant(bounds[0].replicas.sum(0), 60.0, startup_s, 1.0, 1), OnDemand()),
    ]:
        result = simulate(
            [requests], world, PROFILE, policy, slo=SLO, seed=seed, until_s=until_s,
            options=Options(measure_from_s=from_s),
        )  # fmt: skip
        if result.attainment >= SLO.attainment:
            kept += 1
            assert result.cost_usd >= least
    assert kept or from_s == 0.0  # from nothing, hardly any does
