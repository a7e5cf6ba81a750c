"""Tickets end as one record each, whatever happens to the request, and the ledger hears everything in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from stoa.economics.estimate import CostEstimate
from stoa.economics.node import Node
from stoa.economics.records import UsageRecord
from stoa.engine.request import GenerationRequest, SamplingParams
from stoa.engine.usage import Interval, RequestUsage
from stoa.errors import DatabaseUnavailable, PermissionDenied, RateLimited
from stoa.tenancy.gate import Gate
from stoa.tenancy.metering import Metering, Ticket
from stoa.tenancy.meters import MemoryMeters
from stoa.tenancy.principal import Limits, Principal
from tests.tenancy.meters.clock import ManualClock

WHO = Principal(
    "org", "proj_a", "key_1", frozenset({"all"}), 2.0, project_limits=Limits(concurrent_requests=1)
)


@dataclass
class FakeWriter:
    records: list[UsageRecord] = field(default_factory=list)
    healthy: bool = True

    def add(self, record: UsageRecord) -> None:
        self.records.append(record)


@dataclass
class FakeLedger:
    """A nano-dollar a nanosecond. Fails the first `outages` times."""

    heard: list[tuple[Any, ...]] = field(default_factory=list)
    outages: int = 0

    def cost_nanos(self, usage: RequestUsage, pool_bytes: int, at_s: float) -> int:
        return usage.compute_ns

    async def _hear(self, *facts: Any) -> None:
        if self.outages:
            self.outages -= 1
            raise DatabaseUnavailable("away")
        self.heard.append(facts)

    async def start(self, origin_ns: int, pool_bytes: int) -> None:
        await self._hear("start", origin_ns)

    async def record(self, interval: Interval) -> None:
        await self._hear("record", interval.number)

    async def close(self, end_ns: int) -> None:
        await self._hear("close", end_ns)


@dataclass
class Office:
    writer: FakeWriter
    ledger: FakeLedger
    metering: Metering

    async def admit(self, *ids: str, who: Principal = WHO) -> Ticket:
        params = SamplingParams(max_tokens=5)
        asked = [GenerationRequest(id=i, prompt_token_ids=[1, 2, 3], params=params) for i in ids]
        return await self.metering.admit(who, asked, model="m", adapter="poet@1", request_id=ids[0])


@pytest.fixture
def office() -> Office:
    clock = ManualClock(1_700_000_000.0)

    async def spent(payer: object, period: str) -> int:
        return 0

    estimate = CostEstimate(10**9)
    gate = Gate(MemoryMeters(clock), estimate=estimate.nanos, spent=spent, clock=clock)
    writer, ledger = FakeWriter(), FakeLedger()
    metering = Metering(gate, writer, lambda node: ledger, estimate, writer, clock)  # type: ignore[arg-type,return-value]
    return Office(writer, ledger, metering)


def usage(request_id: str, **more: Any) -> RequestUsage:
    facts = {"outcome": "stop", "prompt_tokens": 3, "completion_tokens": 2, "compute_ns": 7, "decode_ns": 4}
    return RequestUsage(request_id=request_id, **(facts | more))


async def test_requests_carry_project_weight_and_account(office: Office) -> None:
    """What the engine needs for shares and books."""
    (request,) = (await office.admit("r")).requests
    assert (request.project, request.weight) == ("proj_a", 2.0)
    assert request.account.split("\x1f") == ["proj_a", "key_1", "m"]


async def test_several_prompts_are_one_record(office: Office) -> None:
    """Amounts are summed, times run side by side; nothing is written before the last has ended and the ticket is
    closed, in either order."""
    ticket = await office.admit("r-0", "r-1")
    for name in ("r-0", "r-1"):
        office.metering.begun(name)
    office.metering.used(usage("r-0"), 7, 0)
    ticket.close()
    assert office.writer.records == []
    office.metering.used(usage("r-1", decode_ns=9), 5, 0)
    (record,) = office.writer.records
    assert (record.request_id, record.project_id, record.key_id) == ("r-0", "proj_a", "key_1")
    assert (record.prompt_tokens, record.completion_tokens, record.cost_nanos) == (6, 4, 12)
    assert (record.decode_ns, record.adapter, record.created_at_s) == (9, "poet@1", 1_700_000_000)


async def test_the_engine_ends_a_request_not_its_client(office: Office) -> None:
    """A place is free, and a record written, when the engine has told what was used."""
    ticket = await office.admit("r")
    office.metering.begun("r")
    ticket.close()
    with pytest.raises(RateLimited):
        await office.admit("s")
    office.metering.used(usage("r", outcome="cancelled"), 7, 0)
    await asyncio.sleep(0.01)
    assert office.writer.records[0].outcome == "cancelled"
    await office.admit("s")


async def test_what_never_began_gives_all_back(office: Office) -> None:
    """No record, and the place is free."""
    ticket = await office.admit("r")
    ticket.close()
    ticket.close()
    await asyncio.sleep(0.01)
    assert office.writer.records == []
    await office.admit("s")


async def test_tokens_of_an_engine_that_died_cost_what_such_tokens_cost(office: Office) -> None:
    """Their number is known, their time is not; nothing is learned from such a request."""
    ticket = await office.admit("r")
    office.metering.begun("r")
    office.metering.used(usage("r", completion_tokens=9), 100, 4)
    ticket.close()
    (record,) = office.writer.records
    assert (record.outcome, record.completion_tokens) == ("stop", 9)
    assert record.cost_nanos == 100 + CostEstimate(10**9).nanos(3, 4)


async def test_nothing_is_taken_on_that_could_not_be_billed(office: Office) -> None:
    """While usage cannot be written; what runs goes on and is recorded once."""
    ticket = await office.admit("r", who=replace(WHO, project_limits=Limits()))
    office.metering.begun("r")
    office.writer.healthy = False
    with pytest.raises(DatabaseUnavailable):
        await office.admit("s")
    office.metering.used(usage("r"), 7, 0)
    office.metering.used(usage("r"), 7, 0)
    ticket.close()
    assert len(office.writer.records) == 1


async def test_keys_without_the_scope_are_refused(office: Office) -> None:
    """Admin keys have no project; others may be for reading only."""
    for who in (
        replace(WHO, project_id=None, scopes=frozenset({"admin"})),
        replace(WHO, scopes=frozenset({"usage.read"})),
    ):
        with pytest.raises(PermissionDenied):
            await office.admit("r", who=who)


async def test_the_ledger_hears_everything_in_order(office: Office) -> None:
    """Also what happened while its database was away, once."""
    office.ledger.outages = 2
    task = asyncio.create_task(office.metering.run())
    node = office.metering.node(Node())
    node.started(100, 1 << 20)
    for number in range(3):
        node.interval(Interval(number=number, start_ns=100, end_ns=200))
    node.ended(0)
    for _ in range(100):
        if len(office.ledger.heard) == 5:
            break
        await asyncio.sleep(0.02)
    task.cancel()
    assert [h[0] for h in office.ledger.heard] == ["start", "record", "record", "record", "close"]
    assert [h[1] for h in office.ledger.heard] == [100, 0, 1, 2, 0]


async def test_closing_settles_what_is_left(office: Office) -> None:
    """Requests that no engine will tell of any more, and entries that wait."""
    await office.admit("r")
    office.metering.begun("r")
    office.metering.node(Node()).started(1, 1)
    await office.metering.close()
    assert office.ledger.heard == [("start", 1)]
    await office.admit("s")
