"""Meters shared through a server."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stoa.errors import ConfigError, DatabaseUnavailable
from stoa.tenancy.meters import Gauge, Hold, MemoryMeters, Meter, Rate, Refused, Spend
from stoa.tenancy.meters.redis import RedisMeters
from tests.tenancy.meters.clock import ManualClock


def told(found: Hold | Refused) -> Any:
    """All but the name of the hold."""
    return found if isinstance(found, Refused) else (found.meters, found.levels, found.marks)


def some_meters(dice: random.Random) -> list[Meter]:
    wanted: list[Meter] = [
        Rate("p/requests", 40, 1),
        Rate("p/k/tokens", dice.choice([900, 900, 1000]), dice.randrange(1, 400)),
        Gauge("p/running", 6),
        Spend("p/spend", 10**15, dice.randrange(10**14)),
    ]
    return [meter for meter in wanted if dice.random() < 0.8]


@pytest.fixture
async def far(redis_url: str, clock: ManualClock, tmp_path: Path) -> AsyncIterator[RedisMeters]:
    meters = RedisMeters(redis_url, f"far{tmp_path.name}", clock=clock)
    yield meters
    await meters.close()


@pytest.mark.parametrize("seed", range(8))
async def test_the_server_and_this_process_agree(far: RedisMeters, clock: ManualClock, seed: int) -> None:
    """To the last digit, over random traffic with crashes, renewals and changed limits."""
    dice = random.Random(seed)
    near = MemoryMeters(clock)
    running: list[tuple[Hold, Hold]] = []
    for _ in range(150):
        clock.pass_s(dice.choice([0, 0.001, 0.3, 2, 9]))
        act = dice.random()
        if act < 0.6 or not running:
            wanted = some_meters(dice)
            a, b = await near.reserve(wanted, lease_s=20), await far.reserve(wanted, lease_s=20)
            assert told(a) == told(b)
            if isinstance(a, Hold) and isinstance(b, Hold):
                running.append((a, b))
            elif isinstance(a, Refused) and a.unknown:
                assert await near.seed("p/spend", 7) == await far.seed("p/spend", 7) == True  # noqa: E712
        elif act < 0.9:
            a, b = running.pop(dice.randrange(len(running)))
            used = {m.name: dice.randrange(m.take * 2) for m in a.meters if isinstance(m, Rate | Spend)}
            assert await near.settle(a, used) == await far.settle(b, used)
        else:
            await near.renew([a for a, _ in running], lease_s=20)
            await far.renew([b for _, b in running], lease_s=20)


async def test_gateways_share_one_count(redis_url: str, tmp_path: Path) -> None:
    """What one reserves the other cannot have; either can settle it."""
    one, two = (RedisMeters(redis_url, tmp_path.name) for _ in range(2))
    gauge = Gauge("p/running", 1)
    hold = await one.reserve([gauge], lease_s=30)
    assert isinstance(hold, Hold)
    assert isinstance(await two.reserve([gauge], lease_s=30), Refused)
    await two.settle(hold, {})
    assert isinstance(await two.reserve([gauge], lease_s=30), Hold)
    await one.close()
    await two.close()


async def test_the_servers_own_clock_is_used(redis_url: str, tmp_path: Path) -> None:
    """Without a clock of ours, a bucket refills as the server's time passes."""
    meters = RedisMeters(redis_url, tmp_path.name)
    rate = Rate("p/requests", 60_000_000, 60_000_000)
    assert isinstance(await meters.reserve([rate], lease_s=30), Hold)
    found = await meters.reserve([Rate("p/requests", 60_000_000, 1)], lease_s=30)
    if isinstance(found, Refused):
        assert found.retry_after_s == 0.001
    await meters.close()


async def test_every_key_goes_by_itself(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    """All keys have an end, and all of a project lie together."""
    meters = RedisMeters(redis_url, tmp_path.name, clock=clock)
    await meters.seed("p/spend", 1)
    wanted = [Rate("p/requests", 60, 1), Gauge("p/running", 3), Spend("p/spend", 100, 10)]
    holds = [await meters.reserve(wanted, lease_s=30) for _ in range(2)]
    assert isinstance(holds[0], Hold)
    await meters.settle(holds[0], {"p/requests": 1, "p/spend": 5})
    import redis

    client = redis.Redis.from_url(redis_url)
    keys = client.keys(f"{tmp_path.name}:*")
    assert len(keys) == 5
    assert all(client.ttl(key) > 0 for key in keys)
    assert all(b":{p}:" in key for key in keys)
    client.close()
    await meters.close()


async def test_a_restarted_server_gets_its_scripts_again(redis_url: str, tmp_path: Path) -> None:
    """Scripts it has forgotten are sent again without anybody noticing."""
    import redis

    meters = RedisMeters(redis_url, tmp_path.name)
    assert isinstance(await meters.reserve([Gauge("p/g", 9)], lease_s=30), Hold)
    client = redis.Redis.from_url(redis_url)
    client.script_flush()
    client.close()
    assert isinstance(await meters.reserve([Gauge("p/g", 9)], lease_s=30), Hold)
    await meters.close()


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Every verb raises DatabaseUnavailable and says which server is meant."""
    pytest.importorskip("redis")
    meters = RedisMeters(f"unix://{tmp_path}/nothing")
    hold = Hold("h", (Gauge("p/g", 1),), (), (None,))
    with pytest.raises(DatabaseUnavailable, match="limiter's server"):
        await meters.reserve([Gauge("p/g", 1)], lease_s=1)
    with pytest.raises(DatabaseUnavailable, match="limiter's server"):
        await meters.settle(hold, {})
    with pytest.raises(DatabaseUnavailable, match="limiter's server"):
        await meters.known("p/spend")
    assert not meters.healthy
    await meters.close()


def test_a_url_of_something_else_is_refused() -> None:
    """The message says what is accepted."""
    pytest.importorskip("redis")
    with pytest.raises(ConfigError, match="redis://HOST"):
        RedisMeters("http://localhost")


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is an optional part of the installation."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigError, match=r"pip install 'stoa\[redis\]'"):
        RedisMeters("redis://localhost")
