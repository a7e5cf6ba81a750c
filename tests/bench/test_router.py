"""`stoa bench router` on a short run."""

from __future__ import annotations

import random

from stoa.bench.router import Arrival, Ours, Random, Replay, Workload, arrivals, run
from stoa.fleet.policies.router import Ask


def test_the_router_finds_adapters_where_random_choice_does_not() -> None:
    """More hits than routers that do not look at adapters or give way at once, shorter waits than anybody."""
    report = run(requests=3000, seeds=2, zipf=(1.0,))
    rows = {row["router"]: row for row in report["rows"]}
    ours = rows["stoa"]
    for name in ("random", "two choices", "least requests", "bounded hash"):
        assert ours["hit_rate"] > rows[name]["hit_rate"]
    for name in rows.keys() - {"stoa"}:
        assert ours["wait_ms_p50"] < rows[name]["wait_ms_p50"]
    assert ours["wait_ms_p99"] < rows["consistent hash"]["wait_ms_p99"]
    assert ours["busiest"] < rows["consistent hash"]["busiest"]
    assert set(report["decision_us"]) == {"adapter", "adapter and prefix"}


def test_every_router_sees_the_same_requests() -> None:
    """The workload is a function of its seed."""
    assert arrivals(Workload(requests=50)) == arrivals(Workload(requests=50))
    assert arrivals(Workload(requests=50)) != arrivals(Workload(requests=50, seed=1))


def test_a_lone_request_waits_for_its_adapter_and_its_prompt() -> None:
    """The model's arithmetic: load, then compute; the second request finds the adapter."""
    workload = Workload(replicas=1, adapters=1, requests=10, adapter_s=0.5)
    asked = [Arrival(10.0 * i, Ask("p", "a", 100), 1.0) for i in range(10)]
    figures = Replay(workload, asked, Random(workload, random.Random(0))).run()
    assert figures["hit_rate"] == 1.0  # the first ones are not counted
    assert abs(figures["wait_ms_p99"] - 20.0) < 1e-6
    router = Ours(workload, random.Random(0))
    first = Replay(workload, asked[:1], router).run()
    assert first["hit_rate"] == 0.0
    assert abs(first["wait_ms_p50"] - 520.0) < 1e-6
    assert router.view.replicas[0].running == 0
