"""How much a remote may be asked and paid: the same meters that limit tenants, under names of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from stoa.economics.api_prices import ApiPrice
from stoa.economics.money import parse_usd
from stoa.errors import DatabaseUnavailable, QueueFull, ReplicaLost
from stoa.fleet.remote.errors import NotCarried
from stoa.fleet.remote.settings import RemoteConfig
from stoa.tenancy.meters.interface import Gauge, Hold, Meter, Meters, Rate, Refused, Spend

_GAUGE_RETRY_S = 1
_SPENT_RETRY_S = 60
_SEED_TRIES = 3
Spent = Callable[[str, int], Awaitable[int]]  # remote's name, Unix seconds → nano-dollars booked since then


async def nothing_spent(remote: str, since_s: int) -> int:
    """Where no ledger is kept."""
    return 0


class Allowance:
    def __init__(
        self,
        config: RemoteConfig,
        meters: Meters,
        clock: Callable[[], float],
        spent: Spent = nothing_spent,
    ) -> None:
        """`clock`: Unix time. `spent` is asked when a day or month begins, or after a restart."""
        self._config, self._meters, self._clock, self._spent = config, meters, clock, spent
        self._prefix = f"remote:{config.name}"
        self._lease_s = config.total_s + 60
        self._limits = {
            period: parse_usd(amount)
            for period, amount in (("day", config.daily_budget), ("month", config.monthly_budget))
            if amount is not None
        }
        self._closed_until_s = 0.0  # a budget is spent

    @property
    def is_spent(self) -> bool:
        return self._clock() < self._closed_until_s

    def limit_day(self, usd: float | None) -> None:
        """A plan's daily budget; the configured one holds too. None: that one alone."""
        own = self._config.daily_budget
        limits = [parse_usd(amount) for amount in (own, usd) if amount is not None]
        before = self._limits.pop("day", None)
        if limits:
            self._limits["day"] = min(limits)
        if self._limits.get("day") != before:
            self._closed_until_s = 0.0  # the next request finds out whether it is spent

    async def take(self, prompt_tokens: int, completion_tokens: int, price: ApiPrice) -> Hold:
        """Reserves a request of at most that size. Raises QueueFull; NotCarried if it can never fit; ReplicaLost if the
        meters cannot be asked."""
        now_s = self._clock()
        wanted = self._wanted(
            prompt_tokens + completion_tokens, now_s, price, prompt_tokens, completion_tokens
        )
        try:
            for _ in range(_SEED_TRIES):
                found = await self._meters.reserve(wanted, lease_s=self._lease_s)
                if isinstance(found, Hold):
                    return found
                if not found.unknown:
                    raise self._refusal(found)
                period = found.meter.name.split("/")[1]
                since_s = int(_period(period, now_s)[1])
                await self._meters.seed(found.meter.name, await self._spent(self._config.name, since_s))
        except DatabaseUnavailable as error:
            raise ReplicaLost(f"its limits cannot be looked up: {error.message}") from None
        raise ReplicaLost("what has been spent on it is not known")

    async def settle(self, hold: Hold, tokens: int, nanos: int) -> None:
        """What it really took. Never raises: a lease ends by itself."""
        used = {}
        for meter in hold.meters:
            kind = meter.name.split("/")[1]
            used[meter.name] = {"requests": 1, "tokens": tokens}.get(kind, nanos)
        try:
            spent = await self._meters.settle(hold, used)
        except DatabaseUnavailable:
            return
        for meter in hold.meters:
            if isinstance(meter, Spend) and spent.get(meter.name, 0) >= (meter.limit_nanos or 0):
                self._close(meter.name)

    def _wanted(
        self, tokens: int, now_s: float, price: ApiPrice, prompt_tokens: int, completion_tokens: int
    ) -> list[Meter]:
        config = self._config
        found: list[Meter] = [Gauge(f"{self._prefix}/places", config.max_in_flight)]
        if config.requests_per_minute:
            found.append(Rate(f"{self._prefix}/requests", config.requests_per_minute, 1))
        if config.tokens_per_minute:
            found.append(Rate(f"{self._prefix}/tokens", config.tokens_per_minute, tokens))
        most = price.most_nanos(prompt_tokens, completion_tokens)
        for period, limit in self._limits.items():
            found.append(Spend(f"{self._prefix}/{period}/{_period(period, now_s)[0]}", limit, most))
        return found

    def _refusal(self, found: Refused) -> QueueFull | NotCarried:
        name = found.meter.name.split("/")[1]
        if isinstance(found.meter, Spend):
            if found.used >= (found.meter.limit_nanos or 0):
                self._close(found.meter.name)
            if found.never:
                return NotCarried(f"its budget of a {name} is less than this request may cost")
            return QueueFull(f"its budget of this {name} is spent or reserved", retry_after_s=_SPENT_RETRY_S)
        if found.never:
            return NotCarried(f"the request is larger than its limit of {name} per minute")
        wait_s = found.retry_after_s
        return QueueFull(
            f"its limit of {name} is reached",
            retry_after_s=_GAUGE_RETRY_S if wait_s is None else max(1, round(wait_s)),
        )

    def _close(self, meter_name: str) -> None:
        """Until the period of that budget ends."""
        period = meter_name.split("/")[1]
        self._closed_until_s = max(self._closed_until_s, _period(period, self._clock())[2])


def _period(period: str, now_s: float) -> tuple[str, float, float]:
    """(name, beginning, end) of the UTC day or month that `now_s` is in."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return f"{day:%Y-%m-%d}", day.timestamp(), (day + timedelta(days=1)).timestamp()
    first = day.replace(day=1)
    return f"{first:%Y-%m}", first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()
