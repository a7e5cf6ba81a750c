"""A remote is asked no more than its limits, and paid no more than its budget."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.economics.api_prices import ApiPrice
from stoa.errors import QueueFull
from stoa.fleet.remote.allowance import Allowance
from stoa.fleet.remote.errors import NotCarried
from stoa.tenancy.meters import MemoryMeters
from tests.fleet.remote.conftest import Bench, MakeBench, config, request
from tests.fleet.remote.fake_remote import hang

NOON_S = 1_795_521_600.0  # 2026-11-24 12:00 UTC
HALF_DAY_S = 43_200
PRICE = ApiPrice(10**9, 10**8, 2 * 10**9)  # a micro-dollar and two a token


class Clock:
    def __init__(self) -> None:
        self.now_s = NOON_S

    def __call__(self) -> float:
        return self.now_s


def allowance(clock: Clock, spent: int = 0, **limits: Any) -> Allowance:
    async def before(remote: str, since_s: int) -> int:
        return spent

    made = config("http://there/v1", input_price=1, output_price=2, **limits)
    return Allowance(made, MemoryMeters(clock), clock, before)


async def test_a_spent_budget_closes_until_its_period_ends() -> None:
    """What the ledger has from before a restart counts."""
    clock = Clock()
    mine = allowance(clock, spent=900_000, daily_budget="0.001")
    hold = await mine.take(50, 20, PRICE)
    with pytest.raises(QueueFull):
        await mine.take(50, 20, PRICE)
    assert not mine.is_spent
    await mine.settle(hold, 70, 100_000)
    assert mine.is_spent
    clock.now_s += HALF_DAY_S
    assert not mine.is_spent


async def test_months_and_days_are_two_budgets() -> None:
    """The month's is spent when the day's is fresh again."""
    clock = Clock()
    mine = allowance(clock, daily_budget="1", monthly_budget="0.0001")
    hold = await mine.take(1, 1, PRICE)
    await mine.settle(hold, 2, 100_000)
    clock.now_s += 6 * 86_400
    assert mine.is_spent
    clock.now_s += HALF_DAY_S
    assert not mine.is_spent


async def test_rates_tell_when_there_is_room_again() -> None:
    """What can never fit is another matter."""
    mine = allowance(Clock(), requests_per_minute=2, tokens_per_minute=1000)
    await mine.take(400, 100, PRICE)
    with pytest.raises(NotCarried, match="tokens"):
        await mine.take(900, 101, PRICE)
    await mine.take(400, 100, PRICE)
    with pytest.raises(QueueFull) as caught:
        await mine.take(1, 1, PRICE)
    assert caught.value.retry_after_s == 30


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300), st.floats(0, 1)), max_size=40))
def test_no_history_spends_more_than_the_budget(asks: list[tuple[int, int, float]]) -> None:
    """As long as requests cost no more than was reserved for them."""

    async def run() -> None:
        mine, paid = allowance(Clock(), daily_budget="0.002"), 0
        for prompt, completion, part in asks:
            try:
                hold = await mine.take(prompt, completion, PRICE)
            except (QueueFull, NotCarried):
                continue
            cost = int(PRICE.most_nanos(prompt, completion) * part)
            paid += cost
            await mine.settle(hold, prompt, cost)
        assert paid <= 2_000_000

    asyncio.run(run())


async def test_places_are_given_back_however_a_request_ends(make: MakeBench) -> None:
    """Answered, failed, or cancelled."""
    bench: Bench = await make(max_in_flight=1, first_token_s=0.05)
    for i in range(3):
        assert (await bench.ask(request(f"{i}"))).losses == 0
        bench.remote.script.append(hang(0))
        assert (await bench.ask(request(f"hangs {i}"))).losses == 1


async def test_a_replica_at_its_limit_is_not_ready_for_a_while(make: MakeBench) -> None:
    """So that no router asks it again at once; the fleet is told when it changes."""
    clock = [0.0]
    bench: Bench = await make(requests_per_minute=1, replica={"clock": lambda: clock[0]})
    told: list[bool] = []
    bench.replica.changed = lambda: told.append(bench.replica.ready)
    assert [(await bench.ask(request(f"{i}"))).losses for i in range(2)] == [0, 1]
    assert told[-1] is False
    clock[0] += 60
    assert bench.replica.ready


async def test_a_plan_may_limit_a_day_further() -> None:
    """Where no budget is configured too; what was spent before counts, and without the plan's limit all is as before."""
    for own in ({}, {"daily_budget": "1"}):
        mine = allowance(Clock(), spent=900_000, **own)
        mine.limit_day(0.001)
        hold = await mine.take(50, 20, PRICE)
        with pytest.raises(QueueFull):
            await mine.take(50, 20, PRICE)
        await mine.settle(hold, 70, 200_000)
        assert mine.is_spent
        mine.limit_day(None)
        assert not mine.is_spent
        await mine.take(50, 20, PRICE)


async def test_a_plan_does_not_raise_a_configured_budget() -> None:
    """The least of the two holds."""
    mine = allowance(Clock(), spent=900_000, daily_budget="0.0005")
    mine.limit_day(1)
    with pytest.raises(QueueFull):
        await mine.take(50, 20, PRICE)
