"""How uneven demand is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.planner.files.arrivals import read_trace
from stoa.planner.files.clock import read_clock
from stoa.planner.files.demand import Kind, bucketed
from stoa.planner.files.document import Periods
from stoa.planner.files.peaks import SPREAD_S, day_factors, margins
from stoa.simulator import Requests, scale_rate
from stoa.simulator.traces import join
from tests.planner.files.test_demand import DAY_S, HOUR_S, MIDNIGHT, arrivals, buckets
from tests.planner.prices.shared import DATA, needs_data

ONE = np.ones(1)


def test_steady_work_needs_no_margin() -> None:
    """Whatever a request is worth, and however it is scaled up."""
    steady = buckets(arrivals([60.0 * i for i in range(1440)]), DAY_S)
    assert margins(steady, np.array([3.0]), 0.95, 60).tolist() == [1.0] * 24
    every_s = buckets(arrivals([float(i) for i in range(86_400)]), DAY_S)
    assert margins(every_s, ONE, 0.95, 60, scale=5.0)[3] == pytest.approx(1.0, abs=0.05)


def test_a_margin_is_a_quantile_over_requests() -> None:
    """A tenth of the windows, with half of the requests, counts half."""
    times = [60.0 * i for i in range(60)] + [600.0 * i + 0.01 * j for i in range(6) for j in range(9)]
    found = buckets(arrivals(sorted(times)), HOUR_S, "flat")
    assert margins(found, ONE, 0.47, 60).tolist() == [1.0]  # 54 of 114 are alone in their minute
    assert margins(found, ONE, 0.48, 60) == pytest.approx(10 / 1.9)


def test_work_counts_and_not_requests() -> None:
    """Large requests make a window full."""
    times = [600.0 * i for i in range(144)] + [60.0 * i + 1 for i in range(1440)]
    prompts = np.array([900] * 144 + [100] * 1440)[np.argsort(times)].tolist()
    uneven = buckets(arrivals(sorted(times), prompts), DAY_S)
    work = np.array([1.0, 10.0])  # every tenth minute brings eleven, the others one: two on average
    assert margins(uneven, work, 0.95, 60)[3] == pytest.approx(11 / 2)
    assert margins(uneven, work, 0.5, 60).tolist() == [1.0] * 24
    assert margins(uneven, np.array([1.0, 0.0]), 0.8, 60).tolist() == [1.0] * 24


def test_bursts_are_flatter_where_a_trace_is_scaled_up() -> None:
    """As the simulator's copies are: of a hundred at once, scaled by ten, ten parts in a hundred come at once."""
    found = buckets(arrivals([600.0 * i + 1e-3 * j for i in range(6) for j in range(100)]), HOUR_S, "flat")
    assert margins(found, ONE, 0.9, 10) == pytest.approx(60.0)
    by_ten = margins(found, ONE, 0.95, 10, scale=10.0)
    assert by_ten == pytest.approx(60 * (0.1 + 0.9 * 10 / SPREAD_S), rel=0.1)


def test_thinning_makes_demand_more_uneven() -> None:
    """Of steady requests chance takes some here and some there."""
    found = buckets(arrivals([0.1 * i for i in range(36_000)]), HOUR_S, "flat")
    assert margins(found, ONE, 0.9, 10) == pytest.approx(1.0)
    assert 1.2 < margins(found, ONE, 0.9, 10, scale=0.1)[0] < 2.0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([2.0, 5.0, 20.0]),
    window_s=st.sampled_from([10.0, 45.0]),
)
def test_what_is_reckoned_for_a_scaled_trace_is_what_the_simulator_makes_of_it(
    seed: int, scale: float, window_s: float
) -> None:
    """Within the chance of where copies fall."""
    rng = np.random.default_rng(seed)
    at_s = np.sort(np.concatenate([rng.random(2000) * HOUR_S, 600 + rng.random(1000) * 60]))
    short = [int(n) for n in np.ones(len(at_s))]
    (copies,) = [join(scale_rate([Requests(at_s, *(np.array(short, np.int32),) * 2)], scale))]
    inside = copies.arrival_s[copies.arrival_s < HOUR_S].tolist()
    direct = margins(buckets(arrivals(inside), HOUR_S, "flat"), ONE, 0.6, window_s)
    reckoned = margins(buckets(arrivals(at_s.tolist()), HOUR_S, "flat"), ONE, 0.6, window_s, scale=scale)
    assert reckoned == pytest.approx(direct, rel=0.12)


def test_days_that_differ_count_as_days_or_within() -> None:
    """A day with thrice the requests of the other: the quantile of days says so, and windows then compare with their day."""
    times = [60.0 * i for i in range(1440)] + [DAY_S + 20.0 * i for i in range(4320)]
    found = buckets(arrivals(times), 2 * DAY_S)
    assert day_factors(found, ONE, 1.0) == pytest.approx([1.5] * 24)
    assert day_factors(found, ONE, 0.5) == pytest.approx([1.0] * 24)
    assert margins(found, ONE, 0.95, 60)[5] == pytest.approx(1.5)
    assert margins(found, ONE, 0.95, 60, by_day=True).tolist() == [1.0] * 24
    assert day_factors(buckets(arrivals([0.0]), DAY_S), ONE, 1.0).tolist() == [1.0] * 24


class TestRealTrace:
    """ServeGen's two days of 55 projects."""

    pytestmark = needs_data

    def test_real_demand_is_uneven_and_less_so_scaled_up(self) -> None:
        """By a factor, and days vary."""
        trace = read_trace(DATA / "traces" / "servegen_mid_2days.csv.gz", MIDNIGHT.at.tzinfo)  # type: ignore[arg-type]
        clock, kind = read_clock(Periods(), "UTC"), Kind("chat", "default")
        found = bucketed(
            trace, clock, MIDNIGHT, lambda who: kind, [128, 512, 2048, 8192], [32, 128, 512], 0.0, 2 * DAY_S
        )
        work = np.array([s.prompt_tokens + s.output_tokens for s in found.sizes])
        plain, scaled = (margins(found, work, 0.9, 10.0, scale=scale) for scale in (1.0, 20.0))
        assert (margins(found, work, 0.9, 10.0, by_day=True) >= 1).all()
        assert 1.2 < scaled.mean() < plain.mean() < 10
        assert day_factors(found, work, 0.9).max() > 1.02
