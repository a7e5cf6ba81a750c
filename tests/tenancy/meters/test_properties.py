"""What holds over any interleaving of many gateways' reservations and settlements."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stoa.tenancy.meters import Gauge, Hold, MemoryMeters, Rate, Spend
from tests.tenancy.meters.clock import ManualClock, at_once
from tests.tenancy.meters.slow import SlowBucket


@dataclass(frozen=True)
class Step:
    """First time passes; then the `ends`-th oldest open request (if there is one) ends, or a new one asks."""

    wait_ms: int
    ends: int | None
    take: int
    used_tenths: int  # of what it takes


STEPS = st.lists(
    st.builds(
        Step,
        wait_ms=st.sampled_from([0, 0, 1, 100, 999, 5_000, 30_000, 60_000]) | st.integers(0, 90_000),
        ends=st.none() | st.integers(0, 9),
        take=st.integers(1, 120),
        used_tenths=st.sampled_from([0, 1, 5, 10, 10, 13]),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_window_exceeds_limit_and_refill(steps: list[Step]) -> None:
    """What the requests admitted in any stretch of time use fits the limit and what was refilled meanwhile, but for
    what answers grew beyond their reservations."""
    limit, clock = 100, ManualClock()
    meters = MemoryMeters(clock)
    running: list[tuple[Hold, int]] = []
    uses: list[list[float]] = []  # admitted at, tokens
    grown = 0
    for step in steps:
        clock.pass_s(step.wait_ms / 1000)
        if step.ends is not None and running:
            hold, at = running.pop(step.ends % len(running))
            take = hold.meters[0].take  # type: ignore[union-attr]
            used = take * step.used_tenths // 10
            grown += max(0, used - take)
            uses[at][1] = used
            at_once(meters.settle(hold, {"p/tokens": used}))
            continue
        found = at_once(meters.reserve([Rate("p/tokens", limit, step.take)], lease_s=60))
        if isinstance(found, Hold):
            running.append((found, len(uses)))
            uses.append([clock(), step.take])
    for first in range(len(uses)):
        total = 0.0
        for at_s, tokens in uses[first:]:
            total += tokens
            assert total <= limit * (1 + (at_s - uses[first][0] + 0.001) / 60) + grown + 1e-6


@given(STEPS)
def test_a_bucket_is_its_slow_twin(steps: list[Step]) -> None:
    """The same decisions and the same levels as with a parcel for each reservation."""
    clock = ManualClock(0.0)
    meters, slow = MemoryMeters(clock), SlowBucket(100)
    running: list[tuple[Hold, int]] = []
    now_ms = 0
    for step in steps:
        now_ms += step.wait_ms
        clock.now_s = now_ms / 1000 + 0.0001
        slow.to(now_ms)
        if step.ends is not None and running:
            hold, number = running.pop(step.ends % len(running))
            used = slow.taken[number] * step.used_tenths // 10
            slow.settle(number, used)
            at_once(meters.settle(hold, {"p/tokens": used}))
            continue
        found = at_once(meters.reserve([slow.rate("p/tokens", step.take)], lease_s=60))
        if abs(slow.room(step.take)) < 0.01:
            return  # a rounding decides
        assert isinstance(found, Hold) == (slow.room(step.take) >= 0)
        if isinstance(found, Hold):
            running.append((found, slow.reserve(step.take)))
            assert abs(found.levels[0].remaining - max(0, 100 - slow.used)) <= 1  # type: ignore[operator]


@given(STEPS)
def test_a_refusal_names_the_time_that_helps(steps: list[Step]) -> None:
    """If nothing else comes, the same request fits after it, and not a millisecond earlier."""
    clock = ManualClock(0.0)
    meters = MemoryMeters(clock)
    now_ms = 0
    for step in steps:
        now_ms += step.wait_ms
        wanted = [Rate("p/a", 100, min(100, step.take)), Rate("p/b", 37, 1)]
        clock.now_s = now_ms / 1000 + 0.0001
        found = at_once(meters.reserve(wanted, lease_s=60))
        if isinstance(found, Hold):
            continue
        assert found.retry_after_s is not None
        wait_ms = round(found.retry_after_s * 1000)
        clock.now_s = (now_ms + wait_ms - 1) / 1000 + 0.0001
        assert not isinstance(at_once(meters.reserve(wanted, lease_s=60)), Hold)
        now_ms += wait_ms
        clock.now_s = now_ms / 1000 + 0.0001
        assert isinstance(at_once(meters.reserve(wanted, lease_s=60)), Hold)


@given(STEPS, st.integers(0, 500))
def test_a_hard_budget_is_kept(steps: list[Step], seed: int) -> None:
    """It is overrun at most by what single requests cost more than was held for them; gauges never are; and once all
    has ended nothing is held."""
    clock, limit = ManualClock(), 1000
    meters = MemoryMeters(clock)
    at_once(meters.seed("p/spend", seed))
    running: list[Hold] = []
    spent, beyond = seed, 0
    for step in steps:
        clock.pass_s(min(step.wait_ms, 900) / 1000)
        if step.ends is not None and running:
            hold = running.pop(step.ends % len(running))
            cost = hold.meters[1].take * step.used_tenths // 10  # type: ignore[union-attr]
            spent, beyond = spent + cost, beyond + max(0, cost - hold.meters[1].take)  # type: ignore[union-attr]
            assert at_once(meters.settle(hold, {"p/spend": cost})) == {"p/spend": spent}
        else:
            wanted = [Gauge("p/running", 7), Spend("p/spend", limit, step.take)]
            found = at_once(meters.reserve(wanted, lease_s=3600))
            held = sum(hold.meters[1].take for hold in running)  # type: ignore[union-attr]
            fits = len(running) < 7 and spent + held + step.take <= limit
            assert isinstance(found, Hold) == fits
            if isinstance(found, Hold):
                running.append(found)
        assert len(running) <= 7
        assert spent <= limit + beyond
    for hold in running:
        at_once(meters.settle(hold, {}))
    rest = at_once(meters.reserve([Gauge("p/running", 7), Spend("p/spend", None, 0)], lease_s=60))
    assert isinstance(rest, Hold)
    assert rest.levels[0].remaining == 6
    assert at_once(meters.settle(rest, {})) == {"p/spend": spent}


def test_idle_meters_are_forgotten() -> None:
    """A million names that came once do not stay: memory follows what is in use."""
    clock = ManualClock()
    meters = MemoryMeters(clock)
    for i in range(20_000):
        wanted = [Rate(f"p{i}/requests", 600, 1), Rate(f"p{i}/tokens", 6000, 10), Gauge(f"p{i}/running", 3)]
        hold = at_once(meters.reserve(wanted, lease_s=60))
        assert isinstance(hold, Hold)
        at_once(meters.settle(hold, {f"p{i}/requests": 1, f"p{i}/tokens": 10}))
        clock.pass_s(0.01)
    assert len(meters) < 200


def test_settled_holds_and_sums_are_forgotten() -> None:
    """After their time, which is longer than any repetition."""
    clock = ManualClock()
    meters = MemoryMeters(clock)
    for i in range(300):
        at_once(meters.seed(f"p{i}/spend", 1))
        hold = at_once(meters.reserve([Spend(f"p{i}/spend", 10, 1)], lease_s=60))
        assert isinstance(hold, Hold)
        at_once(meters.settle(hold, {f"p{i}/spend": 1}))
    clock.pass_s(2 * 86_400)
    for _ in range(400):
        at_once(meters.reserve([Gauge("p/g", 1000)], lease_s=1))
        clock.pass_s(2)
    assert len(meters) < 5
    assert not at_once(meters.known("p7/spend"))
