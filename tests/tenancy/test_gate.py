"""Who is let in, what they are told if not, and what they are charged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from stoa.errors import DatabaseUnavailable, QuotaExceeded, RateLimited, RequestTooLarge
from stoa.tenancy.gate import Admission, Gate, Payer, dollars, duration
from stoa.tenancy.meters import Hold, MemoryMeters, Meter, Refused
from stoa.tenancy.principal import Budget, Limits, Principal
from tests.tenancy.meters.clock import ManualClock

A = Payer("org", "proj_a")
NOVEMBER = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()


class Ledger:
    """What projects have spent, and how often it was asked."""

    def __init__(self, nanos: int = 0) -> None:
        self.nanos, self.asked = nanos, list[tuple[Payer, str]]()

    async def spent(self, payer: Payer, period: str) -> int:
        self.asked.append((payer, period))
        await asyncio.sleep(0)
        return self.nanos


class FarMeters(MemoryMeters):
    """Meters that take their time, as a server does, and can be out of reach."""

    reachable = True
    calls = 0

    async def reserve(self, wanted: Sequence[Meter], *, lease_s: float) -> Hold | Refused:
        self.calls += 1
        await self._travel()
        return await super().reserve(wanted, lease_s=lease_s)

    async def settle(self, hold: Hold, used: Mapping[str, int]) -> dict[str, int]:
        self.calls += 1
        await self._travel()
        return await super().settle(hold, used)

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if not self.reachable:
            raise DatabaseUnavailable("the limiter's server is away")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOVEMBER)


def principal(
    *, key: Limits | None = None, project: Limits | None = None, budget: Budget | None = None
) -> Principal:
    return Principal(
        "org", "proj_a", "key_1", frozenset({"all"}), 1.0, key or Limits(), project or Limits(), budget
    )


def open_gate(clock: ManualClock, ledger: Ledger | None = None, **more: Any) -> Gate:
    meters = more.pop("meters") if "meters" in more else MemoryMeters(clock)
    spent = (ledger or Ledger()).spent
    return Gate(
        meters, estimate=lambda prompt, completion: prompt + 2 * completion, spent=spent, clock=clock, **more
    )


async def enter(gate: Gate, who: Principal, prompt: int = 10, max_tokens: int = 10, n: int = 1) -> Admission:
    return await gate.admit(
        who, prompt_tokens=prompt, max_tokens=max_tokens, n=n, model="poet", request_id="req_1"
    )


async def test_a_principal_without_limits_costs_nothing(clock: ManualClock) -> None:
    """No meter is asked, there are no headers, and settling is allowed."""
    meters = FarMeters(clock)
    gate = open_gate(clock, meters=meters)
    for who in (
        principal(),
        principal(budget=Budget()),
        Principal("org", None, "key_1", frozenset({"admin"})),
    ):
        admission = await enter(gate, who)
        assert admission.headers == {}
        await admission.settle(1, 1, 1)
    assert meters.calls == 0


async def test_headers_show_the_tighter_of_key_and_project(clock: ManualClock) -> None:
    """Limit, remaining and time to full, under the names and in the format of OpenAI."""
    gate = open_gate(clock)
    who = principal(key=Limits(60, 1000), project=Limits(1200, 100))
    admission = await enter(gate, who, prompt=10, max_tokens=20, n=2)
    assert admission.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "30s",
    }
    assert set((await enter(gate, principal(key=Limits(5)))).headers) == {
        f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")
    }


async def test_too_many_requests_are_told_when_to_return(clock: ManualClock) -> None:
    """The message has limit, use and time; after that time the request is let in."""
    gate, who = open_gate(clock), principal(key=Limits(requests_per_minute=2))
    await enter(gate, who)
    await enter(gate, who)
    with pytest.raises(RateLimited) as info:
        await enter(gate, who)
    assert info.value.message == (
        "Rate limit reached for poet in key key_1 on requests per min (RPM): Limit 2, Used 2, Requested 1. "
        "Please try again in 30s."
    )
    assert (info.value.status, info.value.code, info.value.retry_after_s) == (
        429,
        "rate_limit_exceeded",
        30.0,
    )
    clock.pass_s(30)
    await enter(gate, who)


async def test_tokens_are_reserved_with_all_answers_and_corrected_after(clock: ManualClock) -> None:
    """Prompt and n times max_tokens are taken; what was not generated comes back."""
    gate, who = open_gate(clock), principal(project=Limits(tokens_per_minute=600))
    admission = await enter(gate, who, prompt=100, max_tokens=200, n=2)
    with pytest.raises(
        RateLimited, match=r"project proj_a on tokens .*: Limit 600, Used 500, Requested 120\. "
    ):
        await enter(gate, who, prompt=20, max_tokens=100)
    await admission.settle(100, 50, 0)
    assert (await enter(gate, who, 20, 100)).headers["x-ratelimit-remaining-tokens"] == "330"


async def test_a_long_allowance_is_capped_a_long_prompt_is_not(clock: ManualClock) -> None:
    """A max_tokens beyond the limit takes the whole minute; a prompt beyond it can never be served and says so."""
    gate, who = open_gate(clock), principal(key=Limits(tokens_per_minute=600))
    admission = await enter(gate, who, prompt=100, max_tokens=32_000)
    assert admission.headers["x-ratelimit-remaining-tokens"] == "0"
    await admission.release()
    with pytest.raises(
        RequestTooLarge, match=r"Request too large for poet in key key_1 .*Limit 600, Requested 601"
    ):
        await enter(gate, who, prompt=600)
    await enter(gate, who, prompt=600, max_tokens=0)


async def test_a_key_with_a_limit_of_zero_is_shut(clock: ManualClock) -> None:
    """It is refused as rate limited, without promising a time."""
    for limits in (Limits(requests_per_minute=0), Limits(concurrent_requests=0)):
        with pytest.raises(RateLimited, match=r"Limit 0, Used 0, Requested 1\. Nothing is allowed here"):
            await enter(open_gate(clock), principal(key=limits))


async def test_running_requests_are_counted_until_they_end(clock: ManualClock) -> None:
    """A limit of one lets the next in once the first is settled."""
    gate, who = open_gate(clock), principal(project=Limits(concurrent_requests=1))
    admission = await enter(gate, who)
    with pytest.raises(RateLimited, match="on concurrent requests: Limit 1, Used 1, Requested 1"):
        await enter(gate, who)
    await admission.settle(1, 1, 1)
    await enter(gate, who)


async def test_what_never_ran_is_given_back(clock: ManualClock) -> None:
    """A released request leaves no trace in any meter."""
    gate = open_gate(clock)
    who = principal(key=Limits(1, 20, 1), budget=Budget(hard_nanos=30))
    for _ in range(3):
        await (await enter(gate, who)).release()


async def test_a_spent_budget_refuses(clock: ManualClock) -> None:
    """The message tells limit, spent and when it resets; the ledger is asked once."""
    ledger = Ledger(12 * 10**9)
    gate = open_gate(clock, ledger)
    who = principal(budget=Budget("month", 12 * 10**9 + 50))
    with pytest.raises(QuotaExceeded) as info:
        await enter(gate, who, prompt=31, max_tokens=10)
    assert info.value.message == (
        "Project proj_a: the budget for 2026-11 has no room for this request: Limit $12.00000005, Used $12.00 "
        "(running requests included), Requested $0.000000051. It resets on 2026-12-01 at 00:00 UTC."
    )
    assert (info.value.status, info.value.type, info.value.code) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    admission = await enter(gate, who, prompt=30, max_tokens=10)
    await admission.settle(30, 1, 49)
    with pytest.raises(QuotaExceeded):
        await enter(gate, who, prompt=2, max_tokens=0)
    await enter(gate, who, prompt=1, max_tokens=0)
    assert ledger.asked == [(A, "2026-11")]


async def test_a_month_begins_anew(clock: ManualClock) -> None:
    """In UTC, by itself; a total does not. What was admitted in the old month is charged to it."""
    ledger = Ledger()
    gate = open_gate(clock, ledger, lease_s=300)
    monthly, total = (principal(budget=Budget(p, 30)) for p in ("month", "total"))  # type: ignore[arg-type]
    late = await enter(gate, monthly)
    await enter(gate, total)
    clock.pass_s(60)
    await enter(gate, monthly)
    await late.settle(10, 10, 30)
    with pytest.raises(QuotaExceeded, match=r"budget for 2026-12 .* resets on 2027-01-01"):
        await enter(gate, monthly)
    with pytest.raises(QuotaExceeded, match=r"in total .* does not reset"):
        await enter(gate, total)
    assert ledger.asked == [(A, "2026-11"), (A, "total"), (A, "2026-12")]


async def test_many_first_requests_ask_the_ledger_once(clock: ManualClock) -> None:
    """They wait for one answer together."""
    ledger = Ledger()
    gate = open_gate(clock, ledger, meters=FarMeters(clock))
    who = principal(budget=Budget(hard_nanos=10**6))
    await asyncio.gather(*(enter(gate, who) for _ in range(50)))
    assert len(ledger.asked) == 1


async def test_alerts_go_out_once(clock: ManualClock) -> None:
    """When a settlement crosses the threshold, once in a period; several at once go in order."""
    seen: list[tuple[object, ...]] = []
    gate = open_gate(clock, Ledger(40), on_alert=lambda *alert: seen.append(alert))
    who = principal(budget=Budget("month", None, (30, 50, 80, 100)))
    for cost in (5, 10, 45, 10):
        await (await enter(gate, who)).settle(1, 1, cost)
    assert seen == [(A, 50, 55), (A, 80, 100), (A, 100, 100)]
    clock.pass_s(60)
    await (await enter(gate, who)).settle(1, 1, 15)
    assert seen[3:] == [(A, 50, 55)]


async def test_a_failing_alert_disturbs_nobody(clock: ManualClock) -> None:
    """The settlement it came from is complete."""

    def fail(*alert: object) -> None:
        raise RuntimeError("no")

    gate = open_gate(clock, on_alert=fail)
    who = principal(project=Limits(concurrent_requests=1), budget=Budget(alerts=(1,)))
    await (await enter(gate, who)).settle(1, 1, 5)
    await enter(gate, who)


async def test_settling_twice_charges_once(clock: ManualClock) -> None:
    """Also if the second call says something else, or comes while the first is under way."""
    gate = open_gate(clock, meters=FarMeters(clock))
    who = principal(key=Limits(tokens_per_minute=100), budget=Budget(hard_nanos=100))
    admission = await enter(gate, who)
    await asyncio.gather(admission.settle(10, 5, 20), admission.settle(50, 50, 90), admission.release())
    await admission.settle(50, 50, 90)
    with pytest.raises(QuotaExceeded, match=r"Used \$0.00000002 "):
        await enter(gate, who, prompt=80, max_tokens=1)


async def test_a_cancelled_request_is_settled_all_the_same(clock: ManualClock) -> None:
    """The client leaves, and leaves again while the settlement travels: it arrives."""
    gate = open_gate(clock, meters=FarMeters(clock))
    who = principal(project=Limits(concurrent_requests=1))

    async def serve() -> None:
        admission = await enter(gate, who)
        try:
            await asyncio.sleep(3600)
        finally:
            await admission.settle(10, 1, 1)

    task = asyncio.create_task(serve())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(3):
        await asyncio.sleep(0)
    await enter(gate, who)


async def test_what_cannot_be_settled_is_settled_later(clock: ManualClock) -> None:
    """With the meters out of reach nobody is let in, running requests end in peace, and their charge is not lost."""
    meters = FarMeters(clock)
    gate, who = open_gate(clock, meters=meters), principal(budget=Budget(hard_nanos=100))
    admission = await enter(gate, who)
    meters.reachable = False
    with pytest.raises(DatabaseUnavailable):
        await enter(gate, who)
    await admission.settle(10, 10, 95)
    meters.reachable = True
    await gate.renew()
    with pytest.raises(QuotaExceeded, match=r"Used \$0.000000095 "):
        await enter(gate, who)


async def test_long_requests_keep_their_place(clock: ManualClock) -> None:
    """Renewed leases last longer than any single one; without renewal the place is free again."""
    gate, who = open_gate(clock, lease_s=60), principal(project=Limits(concurrent_requests=1))
    await enter(gate, who)
    for _ in range(10):
        clock.pass_s(20)
        await gate.renew()
        with pytest.raises(RateLimited):
            await enter(gate, who)
    clock.pass_s(61)
    await enter(gate, who)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.12, "120ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (30.1, "30.1s"),
        (59.9991, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m2s"),
        (3600, "1h0m0s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    """Never shorter than the time itself."""
    assert duration(seconds) == text


def test_dollars_show_all_digits_that_matter() -> None:
    """Two after the point, more if there are more."""
    assert [dollars(n) for n in (0, 1, 12_500_000_000, 10**9)] == ["$0.00", "$0.000000001", "$12.50", "$1.00"]


async def test_an_organizations_budget_holds_for_all_its_projects(clock: ManualClock) -> None:
    """What one project has spent of it is gone for the other, whose own budget is not touched."""
    seen: list[tuple[object, ...]] = []
    ledger = Ledger()
    gate = open_gate(clock, ledger, on_alert=lambda *alert: seen.append(alert))
    shared = Budget("total", 100, (60,))
    one, other = (
        Principal(
            "org", p, f"key_{p}", frozenset({"all"}), organization_budget=shared, budget=Budget(hard_nanos=90)
        )
        for p in ("proj_a", "proj_b")
    )
    await (await enter(gate, one)).settle(1, 1, 80)
    assert seen == [(Payer("org", None), 60, 80)]
    with pytest.raises(QuotaExceeded, match="Organization org: the budget in total has no room"):
        await enter(gate, other, prompt=21, max_tokens=0)
    await enter(gate, other, prompt=20, max_tokens=0)
    assert (Payer("org", None), "total") in ledger.asked
