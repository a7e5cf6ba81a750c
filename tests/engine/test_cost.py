"""What rows cost, and how long steps take."""

from __future__ import annotations

import pytest

from stoa.engine.cost import RowCost, StepTime


def test_a_fit_tells_what_work_costs() -> None:
    """A step of 10 ms and 1 ms a row: eight rows are 8/18 of it; free rows cost nothing."""
    times, free = StepTime(), StepTime()
    for rows in (1, 8, 200, 3, 8, 8, 64) * 10:
        times.observe(rows, 0.010 + 0.001 * rows)
        free.observe(rows, 0.010)
    assert times.fit() == pytest.approx((0.010, 0.001), rel=1e-3)
    assert times.work_share(8) == pytest.approx(8 / 18, rel=1e-3)
    assert free.work_share(8) == pytest.approx(0, abs=1e-6)


def test_before_steps_have_varied_a_prior_stands_in() -> None:
    """One row alone is cheap to add to, a large batch is not."""
    times = StepTime()
    assert times.fit() == (0.0, 0.0)
    for _ in range(50):
        times.observe(4, 0.01)
    assert times.work_share(1) < 0.1 < 0.6 < times.work_share(64)


def test_rows_cost_what_they_compute_and_read() -> None:
    """Context and adapter count by their bytes, an adapter shared by two by half of them, sampling by the head."""
    cost = RowCost(head=0.5, attend=0.0, byte=0.001, adapter_byte=0.0, kv_token_bytes=10.0)
    plain = cost.work(4, 0, 0, 0)
    assert plain == 4
    assert cost.work(4, 1, 0, 0) == plain + 0.5
    assert cost.work(4, 0, 100, 0) == plain + 1
    assert cost.work(4, 0, 0, 2000) - plain == 2 * (cost.work(4, 0, 0, 2000, sharers=2) - plain) == 2
