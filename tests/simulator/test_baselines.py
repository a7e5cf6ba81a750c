"""The baselines decide as their papers and documentation say: hand-made snapshots, then whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.facts import (
    Autoscaler,
    Bounds,
    Decision,
    Demand,
    Offer,
    OfferSeen,
    ReplicaSeen,
    Slo,
    Snapshot,
)
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Requests, SpotTrace, Zone, simulate
from stoa.simulator.baselines import (
    Both,
    Hpa,
    Knative,
    OnDemand,
    RayServe,
    RequestRate,
    SageServe,
    Scaler,
    SpotHedge,
    StaticPeak,
)
from stoa.simulator.baselines.clairvoyant import Clairvoyant, Foresight
from stoa.simulator.baselines.forecast import arima

PROFILE = Profile(
    name="small", fixed_s=0.02, prompt_row_s=1e-4, decode_row_s=1e-3, max_num_seqs=16, max_batch_tokens=256
)
SPOT = [Offer(zone, "spot", price, 120.0) for zone, price in (("a", 1.0), ("b", 1.0), ("c", 0.9))]
FIRM = Offer("a", "on_demand", 3.0, 120.0)


def replicas(count: int, offer: Offer = FIRM, state: Any = "ready", **more: Any) -> list[ReplicaSeen]:
    return [
        ReplicaSeen(f"{offer.zone}{offer.market}{state}{i}", offer, state, 0.0, **more) for i in range(count)
    ]


def snapshot(
    now_s: float = 1000.0,
    *,
    fleet: Sequence[ReplicaSeen] = (),
    requests: Sequence[float] = (0.0,) * 60,
    held_in_fleet: Sequence[float] = (0.0,) * 60,
    offers: Sequence[OfferSeen] | None = None,
    bin_s: float = 10.0,
    bounds: Bounds | None = None,
) -> Snapshot:
    tokens = [100.0 * r for r in requests]
    demand = Demand(bin_s, requests, tokens, tokens, held_in_fleet, [0.0] * len(requests))
    seen = offers if offers is not None else [OfferSeen(o) for o in (*SPOT, FIRM)]
    return Snapshot(now_s, fleet, demand, seen, PROFILE, Slo(2.0), bounds or Bounds())


def targets(scaler: Scaler[Any], looks: Sequence[Snapshot]) -> list[int]:
    memory, found = scaler.initial(), []
    for seen in looks:
        target, memory = scaler.target(seen, memory)
        found.append(target)
    return found


def busy(requests: float, times: Sequence[float], ready: int = 4) -> list[Snapshot]:
    return [snapshot(t, fleet=replicas(ready), held_in_fleet=[requests] * 60) for t in times]


# -- placements


def test_on_demand_launches_what_is_missing_at_the_lowest_price() -> None:
    """Missing replicas come from the cheapest on-demand offer."""
    offers = [OfferSeen(Offer("x", "on_demand", 4.0, 60.0)), OfferSeen(FIRM), OfferSeen(SPOT[0])]
    decision, _ = OnDemand().place(snapshot(fleet=replicas(2), offers=offers), 5, None)
    assert [(x.offer, x.count) for x in decision.launch] == [(FIRM, 3)]


def test_what_starts_is_given_back_before_what_serves() -> None:
    """Of too many replicas the starting ones go first, then the least busy."""
    fleet = [*replicas(1, running=5), *replicas(1, SPOT[0], running=1), *replicas(1, state="starting")]
    decision, _ = OnDemand().place(snapshot(fleet=fleet), 1, None)
    assert decision.drain == (fleet[2].id, fleet[1].id)


def test_draining_replicas_count_as_gone() -> None:
    """A replica that drains is neither counted nor drained again."""
    decision, _ = OnDemand().place(snapshot(fleet=replicas(3, state="draining")), 2, None)
    assert decision.launch[0].count == 2
    assert decision.drain == ()


def test_bounds_hold_whatever_the_scaler_says() -> None:
    """The target of a pair stays between the snapshot's bounds."""
    for wanted, there in ((100, 7), (0, 2)):
        pair = Both(StaticPeak(wanted), OnDemand())
        decision, _ = pair.decide(snapshot(bounds=Bounds(2, 7)), pair.initial())
        assert decision.launch[0].count == there


def test_spothedge_spreads_over_zones_and_bridges_on_demand() -> None:
    """Without any replica ready, N + extra go to spot in different zones first, and N stand on demand meanwhile."""
    decision, _ = SpotHedge(extra=1).place(snapshot(), 4, SpotHedge().initial())
    counts = {(x.offer.zone, x.offer.market): x.count for x in decision.launch}
    assert counts == {("a", "spot"): 1, ("b", "spot"): 1, ("c", "spot"): 3, ("a", "on_demand"): 4}


def test_spothedge_gives_on_demand_back_as_spot_becomes_ready() -> None:
    """On demand there are min(N, N + extra - ready spot) replicas."""
    for ready, firm in ((0, 4), (1, 4), (2, 3), (5, 0)):
        fleet = [*replicas(ready, SPOT[0]), *replicas(5 - ready, SPOT[1], "starting"), *replicas(4)]
        decision, _ = SpotHedge(extra=1).place(snapshot(fleet=fleet), 4, SpotHedge().initial())
        assert len(decision.drain) == 4 - firm
        assert decision.launch == ()


def seen_offers(**refused: float) -> list[OfferSeen]:
    return [OfferSeen(o, refused_s=refused.get(o.zone, -math.inf)) for o in SPOT] + [OfferSeen(FIRM)]


def test_spothedge_sets_zones_aside_that_refuse() -> None:
    """A zone that refused a launch at the last look gets none now, until one there succeeds."""
    hedge = SpotHedge(extra=0)
    _, memory = hedge.place(snapshot(10.0), 1, hedge.initial())
    decision, memory = hedge.place(snapshot(20.0, offers=seen_offers(c=10.0)), 1, memory)
    assert [x.offer.zone for x in decision.launch if x.offer.market == "spot"] == ["a"]
    decision, memory = hedge.place(snapshot(30.0, offers=seen_offers(c=10.0)), 1, memory)
    assert [x.offer.zone for x in decision.launch if x.offer.market == "spot"] == ["a"]
    had = [replace(o, launched_s=30.0) if o.offer.zone == "c" else o for o in seen_offers(c=10.0)]
    decision, memory = hedge.place(snapshot(40.0, offers=had), 1, memory)
    assert [x.offer.zone for x in decision.launch if x.offer.market == "spot"] == ["c"]


def test_spothedge_forgets_preemptions_when_few_zones_are_left() -> None:
    """With fewer than two zones left all are tried again."""
    hedge = SpotHedge(extra=0)
    _, memory = hedge.place(snapshot(10.0), 1, hedge.initial())
    _, memory = hedge.place(snapshot(20.0, offers=seen_offers(c=10.0, a=10.0)), 1, memory)
    assert memory.preempted == frozenset()


def test_spothedge_can_heed_an_announced_end() -> None:
    """A spot replica that is about to end counts as lost only if it is told to look."""
    fleet = replicas(2, SPOT[0], ends_s=1100.0)
    for heeds, launches in ((False, 0), (True, 4)):
        hedge = SpotHedge(extra=0, announced_end=heeds)
        decision, _ = hedge.place(snapshot(fleet=fleet), 2, hedge.initial())
        assert sum(x.count for x in decision.launch) == launches


# -- scalers


def test_hpa_follows_the_ratio_and_leaves_small_ones_alone() -> None:
    """desired = ceil(requests / target), unless the ratio to what is there lies within the tolerance."""
    hpa = Hpa(target_in_flight=10.0)
    assert targets(hpa, busy(35.0, [10.0])) == [4]
    assert targets(hpa, [*busy(40.0, [10.0]), *busy(43.0, [25.0]), *busy(45.0, [40.0])]) == [4, 4, 5]


def test_hpa_doubles_or_adds_four_at_most_per_period() -> None:
    """The default scale-up policies allow the greater of twice as many and four more in fifteen seconds."""
    assert targets(Hpa(target_in_flight=1.0), busy(1000.0, [0.0, 20.0, 40.0, 60.0])) == [5, 10, 20, 40]


def test_hpa_scales_down_after_the_highest_advice_is_five_minutes_old() -> None:
    """Within the stabilization window the highest advice counts."""
    looks = [*busy(100.0, [0.0, 16.0, 32.0, 48.0]), *busy(10.0, np.arange(60.0, 420.0, 20.0).tolist())]
    found = targets(Hpa(target_in_flight=10.0), looks)
    assert max(found) == found[3] == 10
    below = next(s.now_s for s, n in zip(looks, found, strict=True) if s.now_s > 50.0 and n < 10)
    assert below == 360.0


def test_ray_waits_for_its_delays() -> None:
    """More replicas come after the upscale delay, fewer after the downscale delay, of one mind throughout."""
    ray = RayServe(target_ongoing_requests=10.0, upscale_delay_s=30.0, downscale_delay_s=60.0)
    times = [10.0 * i for i in range(1, 6)]
    assert targets(ray, busy(80.0, times)) == [1, 1, 1, 8, 8]
    looks = [
        *busy(80.0, times),
        *busy(20.0, [60.0, 90.0]),
        *busy(80.0, [100.0]),
        *busy(20.0, [110.0, 160.0, 170.0]),
    ]
    assert targets(ray, looks)[5:] == [8, 8, 8, 8, 8, 2]


def test_ray_starts_from_zero_at_once() -> None:
    """Without a running replica a request asks for one immediately."""
    ray = RayServe(min_replicas=0)
    idle = snapshot(10.0)
    waiting = replace(idle, demand=replace(idle.demand, held=1))
    assert targets(ray, [idle, waiting]) == [0, 1]


def test_ray_goes_to_zero_from_one_only() -> None:
    """The last replica goes by a delay of its own."""
    ray = RayServe(
        target_ongoing_requests=1.0,
        upscale_delay_s=0.0,
        downscale_delay_s=10.0,
        to_zero_delay_s=50.0,
        min_replicas=0,
    )
    looks = [*busy(4.0, [10.0], 1), *busy(0.0, [20.0, 30.0, 40.0, 90.0])]
    assert targets(ray, looks) == [4, 4, 1, 1, 0]


def test_knative_panics_on_a_burst_and_stays_up() -> None:
    """A panic window that asks for twice the ready replicas counts at once, and nothing goes down until it is over."""
    knative = Knative(container_concurrency=10.0, target_utilization=1.0)
    calm = [20.0] * 60
    burst = [*calm[1:], 100.0]
    looks = [
        snapshot(t, fleet=replicas(2), held_in_fleet=h)
        for t, h in ((0.0, calm), (10.0, burst), (20.0, calm), (60.0, calm), (80.0, calm))
    ]
    assert targets(knative, looks) == [2, 10, 10, 10, 2]


def test_knative_halves_at_most_and_waits_before_zero() -> None:
    """Down by at most `max_scale_down_rate` a look; the last replica stays for the grace period."""
    knative = Knative(to_zero_grace_s=30.0)
    looks = [
        snapshot(t, fleet=replicas(n)) for t, n in ((0.0, 8), (10.0, 4), (20.0, 2), (30.0, 1), (50.0, 1))
    ]
    assert targets(knative, looks) == [4, 2, 1, 1, 0]


def test_request_rate_counts_decisions_in_a_row() -> None:
    """SkyServe's scaler follows after so many decisions of one mind, and at once from zero."""
    rate = RequestRate(2.0, upscale_delay_s=60.0, downscale_delay_s=40.0, min_replicas=0)
    looks = [snapshot(20.0 * i, requests=[100.0] * 60) for i in range(2)]
    looks += [snapshot(40.0 + 20.0 * i, requests=[200.0] * 60) for i in range(3)]
    looks += [snapshot(100.0 + 20.0 * i, requests=[20.0] * 60) for i in range(2)]
    assert targets(rate, looks) == [5, 5, 5, 5, 10, 10, 1]


def test_sageserve_plans_for_the_peak_that_is_coming() -> None:
    """A load that has risen evenly for hours is planned for as it will be, not as it is."""
    rising = [5.0 + i / 100.0 for i in range(2160)]
    flat = [rising[-1]] * 2160
    plan = SageServe(load=0.1, sigmas=0.0, surge=math.inf, lull=0.0)
    now_s = 21600.0
    ahead, level = (
        targets(plan, [snapshot(now_s, requests=r, held_in_fleet=[0.0] * 2160)])[0] for r in (rising, flat)
    )
    assert ahead > level


def test_sageserve_corrects_what_it_did_not_foresee() -> None:
    """A rate far above the forecast is planned for itself; high utilization adds replicas at once."""
    calm, wild = [10.0] * 720, [*[10.0] * 710, *[100.0] * 10]
    plan = SageServe(load=0.5, sigmas=0.0, surge=2.0)
    first, second = targets(plan, [snapshot(t, requests=r) for t, r in ((7200.0, calm), (7260.0, wild))])
    assert second >= 5 * first
    full = snapshot(7260.0, fleet=replicas(2), requests=calm, held_in_fleet=[32.0] * 720)
    assert targets(plan, [snapshot(7200.0, requests=calm), full])[1] == max(first, math.ceil(32 / (16 * 0.7)))


def test_clairvoyant_launches_a_startup_ahead() -> None:
    """What the plan needs in a bin is asked for as long before as a replica takes to start."""
    plan = Clairvoyant([1.0, 1.0, 4.0, 1.0], bin_s=60.0, startup_s=60.0, headroom=0.0)
    assert targets(plan, [snapshot(t) for t in (0.0, 60.0, 120.0, 180.0)]) == [1, 4, 4, 1]


def test_foresight_leaves_before_machines_do() -> None:
    """It launches where machines last, replaces them a startup ahead of their loss, and pays on demand where none lasts."""
    hour = np.arange(60)
    short = SpotTrace(60.0, (hour < 30).astype(np.int64) * 2)  # two machines for half an hour
    long = SpotTrace(
        60.0, ((hour < 10) | (hour >= 20)).astype(np.int64)
    )  # one, away between minutes 10 and 20
    zones = [Zone("a", 3.0, 1.0, short, 120.0), Zone("b", 3.0, 1.0, long, 120.0)]
    placement = Foresight({zone.name: zone.spot for zone in zones if zone.spot is not None}, least_s=300.0)
    offers = [OfferSeen(offer) for zone in zones for offer in zone.offers()]
    seen = snapshot(0.0, offers=offers)
    first, _ = placement.place(seen, 3, None)
    assert [(x.offer.zone, x.offer.market, x.count) for x in first.launch] == [
        ("a", "spot", 2), ("b", "spot", 1)
    ]  # fmt: skip
    fleet = [*replicas(2, offers[0].offer), *replicas(1, offers[2].offer)]
    late, _ = placement.place(replace(seen, now_s=1700.0, replicas=fleet), 2, None)
    assert [(x.offer.market, x.count) for x in late.launch] == [("on_demand", 1)]
    assert late.drain == (fleet[0].id,)
    less, _ = placement.place(replace(seen, now_s=1300.0, replicas=fleet), 1, None)
    assert sorted(less.drain) == [r.id for r in fleet[:2]]


def test_arima_continues_a_wave_and_a_line() -> None:
    """The forecast of a noiseless series continues it; a short history stays as it is."""
    t = np.arange(120)
    wave = 10.0 + 3.0 * np.sin(t / 6.0)
    coming, _ = arima(wave.tolist(), 6, lags=4)
    assert np.allclose(coming, 10.0 + 3.0 * np.sin(np.arange(120, 126) / 6.0), atol=0.3)
    assert arima([1.0, 5.0], 3, lags=4)[0].tolist() == [5.0, 5.0, 5.0]


def test_scalers_keep_their_own_bounds() -> None:
    """Whatever comes, a scaler with bounds asks for no fewer and no more."""
    bounds = {"min_replicas": 2, "max_replicas": 5}
    looks = [
        snapshot(20.0 * i, fleet=replicas(3), requests=[load] * 60, held_in_fleet=[load] * 60)
        for i, load in enumerate([0.0, 1e6, 1e6, 1e6, 0.0, 0.0, 0.0])
    ]
    for scaler in (
        Hpa(target_in_flight=8.0, down_window_s=0.0, **bounds),
        RayServe(upscale_delay_s=0.0, downscale_delay_s=0.0, **bounds),
        Knative(stable_window_s=10.0, **bounds),
        RequestRate(4.0, upscale_delay_s=0.0, downscale_delay_s=0.0, **bounds),
        SageServe(**bounds),
    ):
        found = targets(scaler, looks)
        assert min(found) >= 2
        assert max(found) == 5


SCALERS: list[Callable[[], Scaler[Any]]] = [
    lambda: StaticPeak(3),
    lambda: Hpa(target_in_flight=8.0),
    lambda: RayServe(target_ongoing_requests=8.0, downscale_delay_s=120.0),
    lambda: Knative(container_concurrency=8.0),
    lambda: RequestRate(4.0, upscale_delay_s=20.0, downscale_delay_s=120.0),
    lambda: SageServe(load=0.4, surge=1.3, out_at=0.5),
]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    scaler=st.sampled_from(SCALERS),
    loads=st.lists(st.floats(0.0, 500.0), min_size=1, max_size=30),
)
def test_targets_are_whole_and_decisions_consistent(
    data: st.DataObject, scaler: Callable[[], Scaler[Any]], loads: list[float]
) -> None:
    """Any pair decides the same again for the same look, drains only what is there, and never launches and drains in one
    market."""
    pair: Autoscaler[Any] = Both(scaler(), data.draw(st.sampled_from([OnDemand(), SpotHedge(extra=1)])))
    memory = pair.initial()
    for i, load in enumerate(loads):
        fleet = [
            *replicas(data.draw(st.integers(0, 6))),
            *replicas(
                data.draw(st.integers(0, 6)), SPOT[0], data.draw(st.sampled_from(["starting", "ready"]))
            ),
        ]
        seen = snapshot(10.0 * (i + 1), fleet=fleet, requests=[load] * 60, held_in_fleet=[load] * 60)
        decision, after = pair.decide(seen, memory)
        assert (decision, after) == pair.decide(seen, memory)
        check(decision, fleet)
        memory = after


def check(decision: Decision, fleet: Sequence[ReplicaSeen]) -> None:
    by_id = {r.id: r for r in fleet}
    assert len(set(decision.drain)) == len(decision.drain)
    drained = {by_id[name].offer.market for name in decision.drain}
    assert all(x.count > 0 for x in decision.launch)
    assert not drained & {x.offer.market for x in decision.launch}


def test_every_pair_runs_over_spot_zones_that_come_and_go() -> None:
    """Each scaler with each placement runs an hour to its end and is never paid more than its peak."""
    rng = np.random.default_rng(0)
    at_s = np.sort(rng.uniform(0.0, 3600.0, 6000))
    requests = Requests(at_s, np.full(6000, 100, np.int32), np.full(6000, 20, np.int32))
    zones = [
        Zone("a", 3.0, 1.0, SpotTrace(195.0, np.array([3, 3, 0, 3, 3])), 60.0),
        Zone("b", 3.0, 1.0, SpotTrace(195.0, np.array([0, 3, 3])), 60.0),
    ]
    for scaler in SCALERS:
        for placement in (OnDemand(), SpotHedge(extra=1)):
            result = simulate(
                [requests], zones, PROFILE, Both(scaler(), placement), slo=Slo(2.0), until_s=3600.0
            )
            peak = max(np.asarray(result.timeline["hourly_usd"]))
            assert 0.0 < result.cost_usd <= peak


def test_wrong_worlds_are_refused() -> None:
    """A placement without its kind of offer says so."""
    with pytest.raises(ValueError, match="on_demand"):
        OnDemand().place(snapshot(offers=[OfferSeen(SPOT[0])]), 1, None)
    with pytest.raises(ValueError, match="spot"):
        SpotHedge().place(snapshot(offers=[OfferSeen(FIRM)]), 1, SpotHedge().initial())
