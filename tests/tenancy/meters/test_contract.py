"""What every implementation of meters keeps."""

from __future__ import annotations

import pytest

from stoa.tenancy.meters import Gauge, Hold, Meter, Meters, Rate, Refused, Spend
from tests.tenancy.meters.clock import ManualClock

LEASE_S = 30.0


async def taken(meters: Meters, *wanted: Meter, lease_s: float = LEASE_S) -> Hold:
    found = await meters.reserve(wanted, lease_s=lease_s)
    assert isinstance(found, Hold), found
    return found


async def refused(meters: Meters, *wanted: Meter) -> Refused:
    found = await meters.reserve(wanted, lease_s=LEASE_S)
    assert isinstance(found, Refused), found
    return found


def tokens(take: int, per_minute: int = 600) -> Rate:
    return Rate("p/tokens", per_minute, take)


async def test_a_rate_gives_its_minute_and_refills(meters: Meters, clock: ManualClock) -> None:
    """The whole limit at once, then as much as has flowed back; the refusal says when the same would fit."""
    hold = await taken(meters, tokens(600))
    level = hold.levels[0]
    assert (level.limit, level.remaining, level.reset_s) == (600, 0, 60.0)
    no = await refused(meters, tokens(20))
    assert (no.used, no.retry_after_s, no.never) == (600, 2.0, False)
    clock.pass_s(1.999)
    assert (await refused(meters, tokens(20))).retry_after_s == pytest.approx(0.001)
    clock.pass_s(0.001)
    assert (await taken(meters, tokens(20))).levels[0].remaining == 0
    clock.pass_s(60)
    assert (await taken(meters, tokens(1))).levels[0].remaining == 599


async def test_more_than_the_limit_never_fits(meters: Meters) -> None:
    """Such a refusal says so and names no time; it is told before others."""
    no = await refused(meters, tokens(601))
    assert no.never
    assert no.retry_after_s is None
    assert (await refused(meters, Rate("p/r", 0, 1))).never
    assert (await refused(meters, Gauge("p/g", 0))).never
    await taken(meters, Gauge("p/one", 1))
    no = await refused(meters, Gauge("p/one", 1), tokens(601))
    assert no.meter == tokens(601)


async def test_the_first_that_refuses_is_told_with_the_time_for_all(
    meters: Meters, clock: ManualClock
) -> None:
    """Two full rates: the first in order is named, the time is the longer one's; after it both have room."""
    first, second = Rate("p/a", 60, 60), Rate("p/k/b", 600, 600)
    await taken(meters, Rate("p/a", 60, 1), second)
    no = await refused(meters, first, second)
    assert no.meter == first
    assert no.retry_after_s == 60.0
    clock.pass_s(60)
    await taken(meters, first, second)


async def test_all_or_nothing(meters: Meters) -> None:
    """A refusal by the last meter leaves nothing taken of the others."""
    await meters.seed("p/spend", 0)
    full = Gauge("p/full", 1)
    await taken(meters, full)
    for _ in range(3):
        no = await refused(meters, tokens(600), Gauge("p/other", 1), Spend("p/spend", 10, 10), full)
        assert no.meter == full
        assert (no.used, no.retry_after_s) == (1, None)
    await taken(meters, tokens(600), Gauge("p/other", 1), Spend("p/spend", 10, 10))


async def test_the_unused_is_given_back(meters: Meters) -> None:
    """A settlement leaves charged what was used; a meter not named used nothing."""
    hold = await taken(meters, tokens(500), Rate("p/requests", 10, 1))
    await meters.settle(hold, {"p/tokens": 100, "p/requests": 1})
    levels = (await taken(meters, tokens(0), Rate("p/requests", 10, 0))).levels
    assert [level.remaining for level in levels] == [500, 9]
    hold = await taken(meters, tokens(500), Rate("p/requests", 10, 1))
    await meters.settle(hold, {})
    levels = (await taken(meters, tokens(0), Rate("p/requests", 10, 0))).levels
    assert [level.remaining for level in levels] == [500, 9]


async def test_what_flowed_back_is_not_given_back_again(meters: Meters, clock: ManualClock) -> None:
    """A request that waited a minute and then used nothing leaves the next one's minute alone."""
    old = await taken(meters, tokens(600))
    clock.pass_s(60)
    await taken(meters, tokens(600))
    await meters.settle(old, {})
    assert (await refused(meters, tokens(1))).used == 600


async def test_a_long_answer_is_charged_what_it_became(meters: Meters, clock: ManualClock) -> None:
    """The bucket goes below zero, and the next request waits for that too."""
    hold = await taken(meters, tokens(600))
    await meters.settle(hold, {"p/tokens": 900})
    no = await refused(meters, tokens(1))
    assert no.used == 900
    assert no.retry_after_s == pytest.approx(30.1)
    clock.pass_s(30.1)
    assert (await taken(meters, tokens(1))).levels[0].remaining == 0


async def test_a_changed_limit_holds_at_once(meters: Meters) -> None:
    """What was used stays used under the new limit."""
    await taken(meters, tokens(600))
    assert (await taken(meters, tokens(100, per_minute=1000))).levels[0].remaining == 300
    assert (await refused(meters, tokens(1, per_minute=300))).used == 700


async def test_another_limit_counts_from_when_it_is_asked_with(meters: Meters, clock: ManualClock) -> None:
    """Not for the time before; a refusal counts as asking, the settlement of an older request does not."""
    hold = await taken(meters, tokens(600))
    clock.pass_s(30)
    assert (await refused(meters, tokens(1, per_minute=60))).used == 300
    clock.pass_s(30)
    await meters.settle(hold, {"p/tokens": 600})
    clock.pass_s(30)
    assert (await refused(meters, tokens(1, per_minute=60))).used == 240


async def test_a_gauge_counts_holders(meters: Meters) -> None:
    """As many as the limit at once; each settlement makes room for one."""
    gauge = Gauge("p/running", 2)
    one = await taken(meters, gauge)
    assert one.levels[0].remaining == 1
    await taken(meters, gauge)
    assert (await refused(meters, gauge)).used == 2
    await meters.settle(one, {})
    await meters.settle(one, {})
    await taken(meters, gauge)
    await refused(meters, gauge)


async def test_a_lease_that_ran_out_stops_counting(meters: Meters, clock: ManualClock) -> None:
    """The gauge and the money held by a gateway that died are free again, neither earlier nor twice."""
    await meters.seed("p/spend", 0)
    wanted = (Gauge("p/running", 1), Spend("p/spend", 100, 60))
    lost = await taken(meters, *wanted)
    clock.pass_s(LEASE_S - 0.001)
    await refused(meters, *wanted)
    clock.pass_s(0.001)
    again = await taken(meters, *wanted)
    assert again.levels[1].remaining == 40
    assert await meters.settle(lost, {"p/spend": 30}) == {"p/spend": 30}, "late, but it was spent"
    assert (await refused(meters, wanted[0])).used == 1
    assert (await refused(meters, wanted[1])).used == 90
    await meters.settle(again, {"p/spend": 50})
    assert (await taken(meters, *wanted[:1], Spend("p/spend", 100, 20))).levels[1].remaining == 0


async def test_renewed_leases_count_on(meters: Meters, clock: ManualClock) -> None:
    """Also those that had run out; not those that were settled."""
    await meters.seed("p/spend", 0)
    wanted = (Gauge("p/running", 2), Spend("p/spend", 100, 50))
    one, two = await taken(meters, *wanted), await taken(meters, *wanted)
    clock.pass_s(LEASE_S - 1)
    await meters.renew([one], lease_s=LEASE_S)
    clock.pass_s(LEASE_S - 1)
    three = await taken(meters, *wanted)
    assert [level.remaining for level in three.levels] == [0, 0]
    await meters.settle(three, {})
    await meters.renew([one, two, three], lease_s=LEASE_S)
    assert (await refused(meters, *wanted)).used == 2
    for hold in (one, two):
        await meters.settle(hold, {})
    assert [level.remaining for level in (await taken(meters, *wanted)).levels] == [1, 50]


async def test_a_budget_refuses_what_would_exceed_it(meters: Meters) -> None:
    """Spent, held and asked for are summed; settlement moves from held to spent."""
    await meters.seed("p/spend", 700)
    one = await taken(meters, Spend("p/spend", 1000, 200))
    assert one.levels[0].remaining == 100
    no = await refused(meters, Spend("p/spend", 1000, 101))
    assert (no.used, no.retry_after_s, no.never) == (900, None, False)
    assert await meters.settle(one, {"p/spend": 250}) == {"p/spend": 950}
    await taken(meters, Spend("p/spend", 1000, 50))
    assert (await refused(meters, Spend("p/spend", 1000, 1))).used == 1000


async def test_large_sums_of_money_are_exact(meters: Meters) -> None:
    """Nano-dollars beyond what a double can hold are added to the last one."""
    await meters.seed("p/spend", 2**60 + 1)
    hold = await taken(meters, Spend("p/spend", None, 0))
    assert await meters.settle(hold, {"p/spend": 1}) == {"p/spend": 2**60 + 2}


async def test_a_budget_without_limit_is_only_counted(meters: Meters) -> None:
    """It never refuses, and settlement tells the sum."""
    await meters.seed("p/spend", 5)
    hold = await taken(meters, Spend("p/spend", None, 10**15))
    assert (hold.levels[0].limit, hold.levels[0].remaining) == (None, None)
    assert await meters.settle(hold, {"p/spend": 7}) == {"p/spend": 12}


async def test_an_unknown_budget_asks_for_its_sum(meters: Meters) -> None:
    """Nothing is admitted before; only the first seed counts."""
    wanted = Spend("p/spend", 100, 10)
    assert not await meters.known("p/spend")
    assert (await refused(meters, tokens(1), wanted)).unknown
    assert await meters.seed("p/spend", 90)
    assert not await meters.seed("p/spend", 0)
    assert await meters.known("p/spend")
    await taken(meters, wanted)
    assert (await refused(meters, wanted)).used == 100


async def test_settling_twice_changes_nothing(meters: Meters) -> None:
    """Rates, gauges and budgets are as after the first time, whatever the second says."""
    await meters.seed("p/spend", 0)
    wanted = (tokens(100), Gauge("p/running", 5), Spend("p/spend", 100, 10))
    hold, other = await taken(meters, *wanted), await taken(meters, *wanted)
    assert await meters.settle(hold, {"p/tokens": 10, "p/spend": 5}) == {"p/spend": 5}
    assert await meters.settle(hold, {"p/tokens": 600, "p/spend": 50}) == {}
    await meters.settle(other, {})
    levels = (await taken(meters, tokens(0), Gauge("p/running", 5), Spend("p/spend", 100, 0))).levels
    assert [level.remaining for level in levels] == [590, 4, 95]


async def test_projects_do_not_touch_each_other(meters: Meters) -> None:
    """The same meter of another project has its own count."""
    await taken(meters, Rate("p/requests", 1, 1))
    await taken(meters, Rate("q/requests", 1, 1))
    assert (await refused(meters, Rate("p/requests", 1, 1))).used == 1
