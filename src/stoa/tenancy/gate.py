"""Lets a request in if its key and project have room for it, and counts afterwards what it really took."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import structlog

from stoa.errors import DatabaseUnavailable, QuotaExceeded, RateLimited, RequestTooLarge, StoaError
from stoa.tenancy.meters.interface import Gauge, Hold, Level, Meter, Meters, Rate, Refused, Spend
from stoa.tenancy.principal import Budget, Limits, Principal

Estimate = Callable[[int, int], int]  # prompt tokens, completion tokens → nano-dollars


class Payer(NamedTuple):
    """Whose budget it is. Without a project: the organization's, over all its projects."""

    organization_id: str
    project_id: str | None


Spent = Callable[[Payer, str], Awaitable[int]]  # period ("2026-11" or "total") → nano-dollars so far
OnAlert = Callable[[Payer, int, int], None]  # threshold, spent, in nano-dollars

_OWED_MAX = 10_000  # settlements kept for later while the meters cannot be reached
_GAUGE_RETRY_S = 1.0  # nobody knows when a running request ends
_NEVER_RETRY_S = 60.0
_SEED_TRIES = 3
_DAY_S = 86_400
log = structlog.get_logger()


class Admission:
    """A request that was let in. Settle it once it is over, in `finally`; or release it if it never ran."""

    __slots__ = ("_done", "_gate", "hold", "principal")

    def __init__(self, gate: Gate, principal: Principal, hold: Hold | None) -> None:
        """`hold` None: nothing limits this principal."""
        self._gate, self.principal, self.hold = gate, principal, hold
        self._done: asyncio.Future[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """x-ratelimit-…, of the tighter of key and project; empty without limits."""
        return {} if self.hold is None else limit_headers(self.hold)

    async def settle(self, prompt_tokens: int, completion_tokens: int, cost_nanos: int) -> None:
        """Charges what it used. The second call changes nothing. Is carried through even if the caller is
        cancelled meanwhile. Raises nothing: what cannot be counted now is counted later."""
        await self._end({"requests": 1, "tokens": prompt_tokens + completion_tokens, "spend": cost_nanos})

    async def release(self) -> None:
        """Like `settle`, for a request that never ran: all is given back."""
        await self._end({})

    async def _end(self, used: Mapping[str, int]) -> None:
        if self.hold is None:
            return
        if self._done is None:
            by_name = {m.name: amount for m in self.hold.meters if (amount := used.get(_kind(m)))}
            self._done = asyncio.ensure_future(self._gate.finish(self, by_name))
        await asyncio.shield(self._done)


class Gate:
    """One per gateway process. `renew` must be called at least every third of `lease_s`; `run` does so."""

    def __init__(
        self,
        meters: Meters,
        *,
        estimate: Estimate,
        spent: Spent,
        clock: Callable[[], float],
        on_alert: OnAlert | None = None,
        lease_s: float = 60.0,
    ) -> None:
        """`clock`: Unix time, tells which month it is. `estimate` should rather be too high: by what it is too low,
        a hard budget may be overrun. `spent` is asked once for each payer and period, and after a restart."""
        self._meters, self._estimate, self._spent, self._clock = meters, estimate, spent, clock
        self._on_alert, self._lease_s = on_alert, lease_s
        self._open: dict[str, Admission] = {}
        self._owed: list[tuple[Admission, Mapping[str, int]]] = []
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._alerted: dict[Payer, tuple[str, set[int]]] = {}  # period, thresholds

    async def admit(
        self,
        principal: Principal,
        *,
        prompt_tokens: int,
        max_tokens: int,
        n: int = 1,
        model: str = "",
        request_id: str = "",
    ) -> Admission:
        """Reserves the prompt and all that may be answered. Raises RateLimited, QuotaExceeded, RequestTooLarge (the
        prompt is longer than a minute's tokens), DatabaseUnavailable."""
        wanted = self._wanted(principal, prompt_tokens, n * max_tokens)
        if not wanted:
            return Admission(self, principal, None)
        found = await self._reserve(wanted)
        if isinstance(found, Refused):
            log.info("refused", request_id=request_id, meter=found.meter.name, used=found.used)
            raise refusal(found, principal, model)
        admission = Admission(self, principal, found)
        self._open[found.id] = admission
        return admission

    async def finish(self, admission: Admission, used: Mapping[str, int]) -> None:
        """`used` by meter name. Called by the admission, once."""
        assert admission.hold is not None
        self._open.pop(admission.hold.id, None)
        try:
            spent = await self._meters.settle(admission.hold, used)
        except DatabaseUnavailable:
            if len(self._owed) < _OWED_MAX:
                self._owed.append((admission, used))
            return
        for name, now in spent.items():
            self._alert(admission.principal, name, now - used.get(name, 0), now)

    async def renew(self) -> None:
        """Extends the leases of all that runs, and settles what could not be settled before."""
        owed, self._owed = self._owed, []
        for admission, used in owed:
            await self.finish(admission, used)
        holds = [a.hold for a in self._open.values() if a.hold is not None]
        await self._meters.renew(holds, lease_s=self._lease_s)

    async def run(self) -> None:
        """Renews until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self.renew()
            except StoaError as error:
                log.warning("leases could not be renewed", error=error.message)

    # -- inside

    def _wanted(self, principal: Principal, prompt: int, completion: int) -> list[Meter]:
        """In the order in which refusals are told: rates, running requests, money; the key before its project."""
        project = principal.project_id
        if project is None:
            return []
        organization = principal.organization_id
        mine = f"{organization}/{project}"
        owners: list[tuple[str, Limits]] = [(mine, principal.project_limits)]
        if principal.key_id is not None:
            owners.insert(0, (f"{mine}/{principal.key_id}", principal.key_limits))
        wanted: list[Meter] = []
        for owner, limits in owners:
            if limits.requests_per_minute is not None:
                wanted.append(Rate(f"{owner}/requests", limits.requests_per_minute, 1))
        for owner, limits in owners:
            if (limit := limits.tokens_per_minute) is not None:
                take = min(prompt + completion, max(prompt + 1, limit))
                wanted.append(Rate(f"{owner}/tokens", limit, take))
        for owner, limits in owners:
            if limits.concurrent_requests is not None:
                wanted.append(Gauge(f"{owner}/running", limits.concurrent_requests))
        for payer, budget in ((mine, principal.budget), (organization, principal.organization_budget)):
            if budget is not None and (budget.hard_nanos is not None or budget.alerts):
                name = f"{payer}/spend/{self._period(budget)}"
                wanted.append(Spend(name, budget.hard_nanos, self._estimate(prompt, completion)))
        return wanted

    def _period(self, budget: Budget) -> str:
        if budget.period == "total":
            return "total"
        return _month(int(self._clock()) // _DAY_S)

    async def _reserve(self, wanted: list[Meter]) -> Hold | Refused:
        for _ in range(_SEED_TRIES):
            found = await self._meters.reserve(wanted, lease_s=self._lease_s)
            if not isinstance(found, Refused) or not found.unknown:
                return found
            await self._seed(found.meter.name)
        raise DatabaseUnavailable("the limiter's server forgets budgets as soon as it is told of them")

    async def _seed(self, name: str) -> None:
        """All that wait for one budget ask the ledger once."""
        task = self._seeding.get(name)
        if task is None:
            task = self._seeding[name] = asyncio.ensure_future(self._ask(name))
            task.add_done_callback(lambda _: self._seeding.pop(name, None))
        await asyncio.shield(task)

    async def _ask(self, name: str) -> None:
        payer, period = _parse_spend(name)
        await self._meters.seed(name, await self._spent(payer, period))

    def _alert(self, principal: Principal, name: str, before: int, now: int) -> None:
        payer, period = _parse_spend(name)
        budget = principal.organization_budget if payer.project_id is None else principal.budget
        if self._on_alert is None or budget is None:
            return
        crossed = [t for t in budget.alerts if before < t <= now]
        if not crossed:
            return
        if self._alerted.get(payer, ("", set()))[0] != period:
            self._alerted[payer] = (period, set())
        sent = self._alerted[payer][1]
        for threshold in sorted(set(crossed) - sent):
            sent.add(threshold)
            try:
                self._on_alert(payer, threshold, now)
            except Exception:
                log.exception("a budget alert failed", payer=payer)


@lru_cache(maxsize=4)
def _month(day: int) -> str:
    """2026-11, of a day since 1970."""
    return datetime.fromtimestamp(day * _DAY_S, UTC).strftime("%Y-%m")


def _parse_spend(name: str) -> tuple[Payer, str]:
    """ORGANIZATION/PROJECT/spend/PERIOD, or without a project."""
    *owner, _, period = name.split("/")
    return Payer(owner[0], owner[1] if len(owner) > 1 else None), period


def _kind(meter: Meter) -> str:
    """requests, tokens, running or spend"""
    return "spend" if isinstance(meter, Spend) else meter.name.rpartition("/")[2]


# -- refusals, in words

_UNITS = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "running": "concurrent requests",
}


def refusal(refused: Refused, principal: Principal, model: str = "") -> StoaError:
    """The error that a refusal becomes."""
    meter = refused.meter
    if isinstance(meter, Spend):
        return QuotaExceeded(_quota_message(meter, refused.used))
    limit, take = (meter.limit, 1) if isinstance(meter, Gauge) else (meter.per_minute, meter.take)
    where = f"key {principal.key_id}" if meter.name.count("/") > 2 else f"project {principal.project_id}"
    what = f"{f' for {model}' if model else ''} in {where} on {_UNITS[_kind(meter)]}"
    facts = f"Limit {limit}, Used {refused.used}, Requested {take}"
    if refused.never and _kind(meter) == "tokens":
        return RequestTooLarge(
            f"Request too large{what}: Limit {limit}, Requested {take}. The input or output tokens must be reduced "
            "in order to run successfully."
        )
    retry_s = refused.retry_after_s
    if retry_s is None:
        retry_s = _NEVER_RETRY_S if refused.never else _GAUGE_RETRY_S
    advice = "Nothing is allowed here." if refused.never else f"Please try again in {duration(retry_s)}."
    headers = {} if isinstance(meter, Gauge) else _refusal_headers(_kind(meter), limit, retry_s)
    return RateLimited(f"Rate limit reached{what}: {facts}. {advice}", retry_after_s=retry_s, headers=headers)


def _refusal_headers(kind: str, limit: int, retry_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": "0",
        f"x-ratelimit-reset-{kind}": duration(retry_s),
    }


def _quota_message(meter: Spend, used: int) -> str:
    payer, period = _parse_spend(meter.name)
    who = f"Project {payer.project_id}" if payer.project_id else f"Organization {payer.organization_id}"
    if period == "total":
        when = "It does not reset by itself; an administrator can raise it."
    else:
        year, month = divmod(int(period[:4]) * 12 + int(period[5:]), 12)
        when = f"It resets on {year}-{month + 1:02}-01 at 00:00 UTC."
    span = "in total" if period == "total" else f"for {period}"
    return (
        f"{who}: the budget {span} has no room for this request: Limit {dollars(meter.limit_nanos or 0)}, "
        f"Used {dollars(used)} (running requests included), Requested {dollars(meter.take)}. {when}"
    )


def dollars(nanos: int) -> str:
    """$12.50; more digits where they are needed."""
    text = f"{nanos // 10**9}.{nanos % 10**9:09}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents:0<2}"


# -- headers


def limit_headers(hold: Hold) -> dict[str, str]:
    headers: dict[str, str] = {}
    for kind in ("requests", "tokens"):
        levels = [lv for m, lv in zip(hold.meters, hold.levels, strict=True) if _kind(m) == kind]
        if levels:
            tightest = min(levels, key=lambda level: level.remaining or 0)
            headers |= _three(kind, tightest)
    return headers


def _three(kind: str, level: Level) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(level.limit),
        f"x-ratelimit-remaining-{kind}": str(level.remaining),
        f"x-ratelimit-reset-{kind}": duration(level.reset_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1s, 7.66s, 6m0s, 1h0m0s. Never shorter than it is."""
    ms = math.ceil(round(seconds * 1000, 6))
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest_s = divmod(math.ceil(ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest_s}s" if hours else f"{minutes}m{rest_s}s"
