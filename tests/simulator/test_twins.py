"""The fast fleet is its slow twin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.facts import Slo
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Options, SpotTrace, Zone, core, simulate
from stoa.simulator.core import FastFleet, Fleet, Setup
from stoa.simulator.stepwise import StepwiseFleet
from stoa.simulator.traces import Requests
from tests.simulator.worlds import Constant, poisson, profile

pytestmark = pytest.mark.skipif(not core.available(), reason="the simulator's C library was not built")
SLOTS = 6


@dataclass(frozen=True)
class Case:
    seed: int
    fixed_s: float
    context_token_s: float
    max_num_seqs: int
    max_batch_tokens: int
    kv_tokens: int
    queue_limit: int
    span_s: float
    together: bool  # many arrive at the same moment
    longest: tuple[int, int]  # prompt, output
    projects: bool
    adapters_each: int
    by_deadline: bool
    ttft_s: float

    def profile(self) -> Profile:
        # No two sums of these are equal by chance: ties between an arrival and a step would be settled by rounding.
        return Profile(
            name="case", fixed_s=self.fixed_s * math.pi, prompt_row_s=2e-4 * math.sqrt(2),
            decode_row_s=5e-4 * math.sqrt(3), context_token_s=self.context_token_s * math.sqrt(5),
            adapter_load_s=0.2 * math.sqrt(7), max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens, kv_tokens=self.kv_tokens,
        )  # fmt: skip

    def setup(self) -> Setup:
        # Where requests come together, or adapters, replicas may end steps together; who then gets a held request is
        # open.
        limit = 0 if self.together or self.adapters_each else self.queue_limit
        return Setup(
            self.profile(),
            self.ttft_s,
            seed=self.seed,
            room=SLOTS,
            queue_limit=limit,
            adapters_each=self.adapters_each,
            by_deadline=self.by_deadline,
        )

    def requests(self, n: int) -> Requests:
        rng = np.random.default_rng(self.seed)
        arrival_s = np.sort(rng.random(n) * self.span_s)
        return Requests(
            np.round(arrival_s) if self.together else arrival_s,
            rng.integers(1, self.longest[0], n).astype(np.int32),
            rng.integers(1, self.longest[1], n).astype(np.int32),
            rng.integers(-1, 3, n).astype(np.int32) if self.projects else None,
            rng.integers(-1, 9, n).astype(np.int32) if self.adapters_each else None,
        )


CASES = st.builds(
    Case,
    seed=st.integers(0, 1 << 30),
    fixed_s=st.sampled_from([0.0, 0.01]),
    context_token_s=st.sampled_from([0.0, 1e-6]),
    max_num_seqs=st.integers(1, 12),
    max_batch_tokens=st.sampled_from([16, 64, 512]),
    kv_tokens=st.sampled_from([400, 2000, 1 << 40]),
    queue_limit=st.sampled_from([0, 0, 4]),
    span_s=st.sampled_from([2.0, 20.0, 100.0]),
    together=st.booleans(),
    longest=st.sampled_from([(30, 3), (30, 150), (300, 3), (300, 150)]),
    projects=st.booleans(),
    adapters_each=st.sampled_from([0, 1, 3]),
    by_deadline=st.booleans(),
    ttft_s=st.sampled_from([0.05, 1.0]),
)


def play(fleet: Fleet, case: Case, requests: Requests) -> tuple[Any, ...]:
    """Replicas come, are closed, emptied and killed at random; then one stays until all is done."""
    rng = np.random.default_rng(case.seed + 1)
    first_s, end_s = fleet.record(len(requests))
    fleet.feed(requests)
    takes: list[int] = []
    closed: list[int] = []
    log: list[Any] = []
    now_s = 0.0
    for turn in range(260):
        wild = turn < 160
        now_s += float(rng.exponential(0.3)) if wild else 30.0
        fleet.run(now_s)
        b = fleet.bin(now_s)
        log.append((b.requests, b.prompt_tokens, b.output_tokens, b.late, b.held, b.in_flight))
        log.append((round(b.in_flight_s, 6), round(b.oldest_wait_s, 6)))
        log.append((fleet.load.tolist(), fleet.no_token.tolist()))
        free = [slot for slot in range(SLOTS) if slot not in takes and slot not in closed]
        chance = rng.random()
        if free and (chance < 0.2 or not takes):
            fleet.add(free[0], now_s)
            takes.append(free[0])
        elif takes and wild and chance < 0.32:
            slot = takes.pop(int(rng.integers(len(takes))))
            fleet.close(slot)
            if chance < 0.29:
                log.append(fleet.move(slot, now_s, planned=chance < 0.26))
            closed.append(slot)
        if len(closed) == SLOTS:  # all wait for each other's requests to go on
            log.append(fleet.move(closed[0], now_s, planned=False))
            fleet.drop(closed.pop(0))
        for slot in list(closed):
            emptied_s = fleet.emptied_s(slot)
            log.append(round(emptied_s, 6))
            if emptied_s <= now_s:
                fleet.drop(slot)
                closed.remove(slot)
    return first_s, end_s, log, fleet.totals(), fleet.ttft_hist.copy()


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_every_time_and_every_count_is_the_slow_twins(case: Case) -> None:
    """First tokens, ends, counts of each look and totals agree while replicas come and go."""
    requests = case.requests(120)
    fast = play(FastFleet(case.setup()), case, requests)
    slow = play(StepwiseFleet(case.setup()), case, requests)
    assert fast[2] == slow[2]
    np.testing.assert_allclose(fast[0], slow[0], rtol=1e-9)
    np.testing.assert_allclose(fast[1], slow[1], rtol=1e-9)
    for name in slow[3].__slots__:
        assert getattr(fast[3], name) == pytest.approx(getattr(slow[3], name)), name
    np.testing.assert_array_equal(fast[4], slow[4])


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_no_token_is_lost_or_said_twice(case: Case) -> None:
    """However replicas come and go, requests that fit get exactly their tokens, and each ends once."""
    requests = case.requests(120)
    totals = play(FastFleet(case.setup()), case, requests)[3]
    fits = requests.prompt_tokens + requests.output_tokens <= case.kv_tokens
    assert totals.in_flight == 0
    assert totals.ended == fits.sum()
    assert totals.refused == (~fits).sum()
    assert totals.output_tokens == requests.output_tokens[fits].sum()


def test_whole_runs_are_the_slow_twins() -> None:
    """Machines, notices, money and quantiles do not depend on which twin computes the steps."""
    spot = SpotTrace(40.0, np.array([2, 2, 1, 0, 2, 1, 2, 2, 0, 1]), scale=1)
    zones = [Zone("a", 3.0, 1.0, spot, startup_s=7.0), Zone("b", 3.0, 1.0, None, startup_s=11.0)]
    steps = profile(
        fixed_s=0.03 * math.pi, prompt_row_s=1e-3 * math.sqrt(2), decode_row_s=1e-3, max_num_seqs=8
    )
    results = [
        simulate(
            [poisson(3.0, 1200, seed=5, prompt=60, output=25)], zones, steps, Constant(3),
            slo=Slo(1.0), seed=3, options=Options(notice_s=15.0, startup_spread=0.2, stepwise=stepwise),
        ).to_json()
        for stepwise in (False, True)
    ]  # fmt: skip
    assert results[0].keys() == results[1].keys()
    assert results[0]["preemptions"] > 0
    assert results[0]["stalls"] > 0
    for name in results[0]:
        _assert_close(results[0][name], results[1][name], name)


def _assert_close(a: Any, b: Any, name: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_close(a[key], b[key], f"{name}.{key}")
    else:
        assert a == pytest.approx(b, rel=1e-9), name
