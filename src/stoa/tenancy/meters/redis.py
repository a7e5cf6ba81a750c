"""Meters that all gateways share, in a Redis or Valkey server: one script, so one round trip, for each verb.

All keys of an organization carry its name as hash tag ("PREFIX:{ORGANIZATION}:…"), so a cluster keeps them on one
node. They go by themselves when it is idle. Without the server nothing is admitted.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from stoa.errors import ConfigError, DatabaseUnavailable
from stoa.tenancy.meters import scripts
from stoa.tenancy.meters.interface import (
    TOKEN,
    Gauge,
    Hold,
    Level,
    Mark,
    Meter,
    Rate,
    Refused,
    Spend,
    owner_of,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = structlog.get_logger()
_PATIENCE_S = 2.0  # for a connection, and for an answer
_CONNECTIONS = 32  # calls beyond them wait for their turn


class _Script:
    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_RESERVE, _SETTLE = _Script(scripts.RESERVE), _Script(scripts.SETTLE)
_RENEW, _SEED = _Script(scripts.RENEW), _Script(scripts.SEED)


class RedisMeters:
    def __init__(self, url: str, prefix: str = "stoa", *, clock: Callable[[], float] | None = None) -> None:
        """`url`: redis://, rediss:// or unix://. `clock`: instead of the server's own, for tests. Connects at the
        first call. Raises ConfigError."""
        self._redis = _client(url)
        self._prefix, self._clock = prefix, clock
        self._ids, self._count = secrets.token_hex(6), 0
        self.healthy = True

    async def reserve(self, wanted: Sequence[Meter], *, lease_s: float) -> Hold | Refused:
        self._count += 1
        hold_id = f"{self._ids}{self._count:x}"
        keys = [key for meter in wanted for key in self._keys(meter.name)]
        facts = [fact for meter in wanted for fact in _facts(meter)]
        verdict, told, wait_ms, states = await self._run(
            _RESERVE, keys, [self._now_ms(), hold_id, int(lease_s * 1000), *facts]
        )
        if verdict != b"ok":
            meter, state = wanted[told - 1], states[told - 1]
            return Refused(
                meter,
                0 if verdict == b"unknown" else _used(meter, state),
                wait_ms / 1000 if isinstance(meter, Rate) and verdict == b"full" else None,
                never=verdict == b"never",
                unknown=verdict == b"unknown",
            )
        levels = tuple([_level(meter, state) for meter, state in zip(wanted, states, strict=True)])
        marks = tuple([_mark(meter, state) for meter, state in zip(wanted, states, strict=True)])
        return Hold(hold_id, tuple(wanted), levels, marks)

    async def settle(self, hold: Hold, used: Mapping[str, int]) -> dict[str, int]:
        if not hold.meters:
            return {}
        keys = [self._settled_key(hold)]
        facts: list[int | str] = []
        for meter, mark in zip(hold.meters, hold.marks, strict=True):
            keys += self._keys(meter.name)
            facts += [*_facts(meter), used.get(meter.name, 0)]
            facts += [0, 1] if mark is None else [mark.era, repr(mark.share)]
        spent = await self._run(_SETTLE, keys, [self._now_ms(), hold.id, *facts])
        return {meter.name: int(amount) for meter, amount in zip(hold.meters, spent, strict=False) if amount}

    async def renew(self, holds: Sequence[Hold], *, lease_s: float) -> None:
        for hold in holds:
            leased = [meter for meter in hold.meters if not isinstance(meter, Rate)]
            if leased:
                keys = [self._settled_key(hold)] + [key for m in leased for key in self._keys(m.name)]
                facts = [fact for meter in leased for fact in _facts(meter)]
                await self._run(_RENEW, keys, [self._now_ms(), hold.id, int(lease_s * 1000), *facts])

    async def seed(self, name: str, spent_nanos: int) -> bool:
        return bool(await self._run(_SEED, self._keys(name), [self._now_ms(), spent_nanos]))

    async def known(self, name: str) -> bool:
        with self._reachable():
            found: Any = self._redis.hexists(self._keys(name)[0], "spent")
            return bool(await found)

    async def close(self) -> None:
        await self._redis.aclose()

    # -- keys, arguments, answers

    def _keys(self, name: str) -> list[str]:
        key = f"{self._prefix}:{{{owner_of(name)}}}:{name}"
        return [key, f"{key}:leases"]

    def _settled_key(self, hold: Hold) -> str:
        return f"{self._prefix}:{{{owner_of(hold.meters[0].name)}}}:settled:{hold.id}"

    def _now_ms(self) -> int:
        """-1: the server's time."""
        return -1 if self._clock is None else int(self._clock() * 1000)

    async def _run(self, script: _Script, keys: list[str], arguments: list[Any]) -> Any:
        from redis.exceptions import NoScriptError  # an optional dependency

        with self._reachable():
            try:
                answer: Any = self._redis.evalsha(script.sha, len(keys), *keys, *arguments)
                return await answer
            except NoScriptError:  # a fresh or restarted server
                answer = self._redis.eval(script.text, len(keys), *keys, *arguments)
                return await answer

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Raises DatabaseUnavailable; the log has the details, once."""
        from redis.exceptions import RedisError  # an optional dependency

        try:
            yield
            self.healthy = True
        except (RedisError, OSError) as error:
            if self.healthy:
                log.error("the limiter's server cannot be used", error=str(error))
            self.healthy = False
            raise DatabaseUnavailable(
                "the limiter's server (Redis) cannot be used at the moment; try again later"
            ) from error


def _client(url: str) -> Redis:
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError("limits kept in Redis need its client: pip install 'stoa[redis]'") from None
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE_S,  # for a free one
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 1),  # a pooled connection may have died unnoticed
        )
        return Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigError(
            f"redis is not a URL ({error}); accepted: redis://HOST:PORT/NUMBER, rediss://…, unix://PATH",
            param="redis",
        ) from None


def _facts(meter: Meter) -> tuple[str, int | str, int]:
    """kind, limit ("" for none), take"""
    if isinstance(meter, Rate):
        return "rate", meter.per_minute, meter.take
    if isinstance(meter, Gauge):
        return "gauge", meter.limit, 1
    return "spend", "" if meter.limit_nanos is None else meter.limit_nanos, meter.take


def _used(meter: Meter, state: list[Any]) -> int:
    if isinstance(meter, Rate):
        return -(-int(state[0]) // TOKEN)
    return int(state[0]) + (int(state[1]) if isinstance(meter, Spend) else 0)


def _level(meter: Meter, state: list[Any]) -> Level:
    used = _used(meter, state)
    if isinstance(meter, Rate):
        reset_ms = -(-int(state[0]) // max(1, meter.per_minute))
        return Level(meter.per_minute, max(0, meter.per_minute - used), reset_ms / 1000)
    limit = meter.limit if isinstance(meter, Gauge) else meter.limit_nanos
    return Level(limit, None if limit is None else max(0, limit - used))


def _mark(meter: Meter, state: list[Any]) -> Mark | None:
    return Mark(int(state[1]), float(state[2])) if isinstance(meter, Rate) else None
