"""From admission to the bill: each request of a client gets a ticket, each ticket ends as one usage record.

    admit ──▶ ticket ──▶ engine requests ──begun──▶ fleet ──used──▶ record, settlement

The engine's word counts, not the client's connection: a request whose client left is settled when the engine has
told what it used. Time of engines goes to the ledger, in order, by one task that tries again while the database
does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog

from stoa.economics.accounts import Account
from stoa.economics.estimate import CostEstimate
from stoa.economics.ledger import Ledger
from stoa.economics.node import Node
from stoa.economics.records import Endpoint, UsageRecord
from stoa.economics.usage import UsageWriter
from stoa.engine.request import GenerationRequest
from stoa.engine.usage import Interval, RequestUsage, summed
from stoa.errors import DatabaseUnavailable, PermissionDenied
from stoa.tenancy.gate import Admission, Gate
from stoa.tenancy.principal import Principal

log = structlog.get_logger("stoa.metering")
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Health(Protocol):
    @property
    def healthy(self) -> bool: ...


@dataclass(eq=False)
class Ticket:
    """One request of a client. Close it when no more engine requests will begin, in `finally`."""

    requests: list[GenerationRequest]
    admission: Admission
    account: Account
    adapter: str
    endpoint: Endpoint
    metering: Metering
    usages: list[RequestUsage] = field(default_factory=list)
    running: int = 0
    cost_nanos: int = 0
    guessed: bool = False  # a part of that is what such tokens cost lately: their engine died before it told
    closed: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """x-ratelimit-…, for the answer."""
        return self.admission.headers

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.metering.settle(self)


class NodeLedger:
    """Implements the fleet's `NodeBooks` for one engine."""

    def __init__(self, ledger: Ledger, metering: Metering) -> None:
        self._ledger, self._metering = ledger, metering
        self._pool_bytes = 1

    def started(self, now_ns: int, pool_bytes: int) -> None:
        self._pool_bytes = pool_bytes
        self._metering.book(lambda: self._ledger.start(now_ns, pool_bytes))

    def interval(self, interval: Interval) -> None:
        self._metering.book(lambda: self._ledger.record(interval))

    def ended(self, now_ns: int) -> None:
        self._metering.book(lambda: self._ledger.close(now_ns))

    def cost_nanos(self, usage: RequestUsage) -> int:
        return self._ledger.cost_nanos(usage, self._pool_bytes, self._metering.clock())


class Metering:
    """Implements the fleet's `Books`. All methods are for the event loop's thread."""

    def __init__(
        self,
        gate: Gate,
        writer: UsageWriter,
        ledger_of: Callable[[Node], Ledger],
        estimate: CostEstimate,
        database: Health,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: Unix time."""
        self._gate, self._writer, self._ledger_of = gate, writer, ledger_of
        self._estimate, self._database, self.clock = estimate, database, clock
        self._tickets: dict[str, Ticket] = {}  # by engine request
        self._settling: set[asyncio.Task[None]] = set()
        self._entries: deque[Callable[[], Awaitable[object]]] = deque()  # for the ledger, in order
        self._more = asyncio.Event()

    async def admit(
        self,
        principal: Principal,
        requests: Sequence[GenerationRequest],
        *,
        model: str,
        adapter: str = "",
        endpoint: Endpoint = "completions",
        request_id: str,
    ) -> Ticket:
        """Reserves what the requests may take, and books them on the principal. Raises PermissionDenied, RateLimited,
        QuotaExceeded, RequestTooLarge, DatabaseUnavailable."""
        if principal.project_id is None or not principal.may("model.request"):
            raise PermissionDenied(
                "this key may not ask models; use a project's key with the scope model.request"
            )
        if not (self._database.healthy and self._writer.healthy):
            raise DatabaseUnavailable(
                "usage cannot be written at the moment, so that nothing new is taken on"
            )
        admission = await self._gate.admit(
            principal,
            prompt_tokens=sum(len(r.prompt_token_ids) for r in requests),
            max_tokens=sum(r.n * r.params.max_tokens for r in requests if r.pooling is None),
            model=model,
            request_id=request_id,
        )
        account = Account(principal.project_id, principal.key_id, model)
        booked = [
            msgspec.structs.replace(
                r, project=principal.project_id, weight=principal.weight, account=str(account)
            )
            for r in requests
        ]
        ticket = Ticket(booked, admission, account, adapter, endpoint, self)
        for request in booked:
            self._tickets[request.id] = ticket
        return ticket

    # -- Books

    def node(self, node: Node) -> NodeLedger:
        return NodeLedger(self._ledger_of(node), self)

    def begun(self, request_id: str) -> None:
        if (ticket := self._tickets.get(request_id)) is not None:
            ticket.running += 1

    def used(self, usage: RequestUsage, cost_nanos: int, lost_tokens: int) -> None:
        ticket = self._tickets.pop(usage.request_id, None)
        if ticket is None:
            return
        ticket.running -= 1
        ticket.usages.append(usage)
        ticket.cost_nanos += cost_nanos
        if lost_tokens:
            ticket.guessed = True
            ticket.cost_nanos += self._estimate.nanos(usage.prompt_tokens, lost_tokens)
        self.settle(ticket)

    # -- settlement

    def settle(self, ticket: Ticket) -> None:
        """Once it is closed and all its engine requests have ended."""
        if not ticket.closed or ticket.running:
            return
        for request in ticket.requests:
            self._tickets.pop(request.id, None)
        usages, ticket.usages = ticket.usages, []
        if not usages:
            self._later(ticket.admission.release())
            return
        usage, cost = _together(ticket.requests[0].id, usages), ticket.cost_nanos
        if not ticket.guessed:
            self._estimate.learn(usage, cost)
        self._writer.add(
            UsageRecord.of(
                usage,
                ticket.account,
                cost_nanos=cost,
                created_at_s=int(self.clock()),
                adapter=ticket.adapter,
                endpoint=ticket.endpoint,
                service_class=ticket.requests[0].service_class,
            )
        )
        self._later(ticket.admission.settle(usage.prompt_tokens, usage.completion_tokens, cost))

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    # -- the ledger's task

    def book(self, entry: Callable[[], Awaitable[object]]) -> None:
        self._entries.append(entry)
        self._more.set()

    async def run(self) -> None:
        """Books until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            await self._book_all()

    async def _book_all(self) -> None:
        failures = 0
        while self._entries:
            try:
                await self._entries[0]()
            except DatabaseUnavailable:
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1
                continue
            except Exception:
                log.exception("a ledger entry is refused; its time will be booked as lost")
            self._entries.popleft()
            failures = 0

    async def close(self, patience_s: float = 10.0) -> None:
        """After the engines have stopped: settles and books what is left."""
        for ticket in {id(t): t for t in self._tickets.values()}.values():
            ticket.running, ticket.closed = 0, True
            self.settle(ticket)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*self._settling)
                await self._book_all()


def _together(request_id: str, usages: Sequence[RequestUsage]) -> RequestUsage:
    """Several prompts of one request: amounts are summed, times run side by side."""
    failed = [u.outcome for u in usages if u.outcome in ("error", "cancelled")]
    return msgspec.structs.replace(
        summed(request_id, failed[0] if failed else usages[-1].outcome, usages),
        queue_ns=max(u.queue_ns for u in usages),
        prefill_ns=max(u.prefill_ns for u in usages),
        decode_ns=max(u.decode_ns for u in usages),
    )
