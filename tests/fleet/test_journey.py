"""A request's way over replicas that refuse it, vanish, or take it over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stoa.engine.request import GenerationRequest
from stoa.errors import EngineUnavailable, InvalidModel, StoaError
from stoa.fleet.fleet import Fleet
from tests.fleet.fake_replica import FakeReplica

REQUEST = GenerationRequest(id="q", prompt_token_ids=[1, 2, 3])


def fleet_of(*replicas: FakeReplica, holds: bool = False, again_s: float = 60.0) -> Fleet:
    fleet = Fleet(hold_s=5.0, again_s=again_s)
    fleet.holds = holds
    for replica in replicas:
        fleet.add(replica)
    return fleet


def asking(fleet: Fleet) -> asyncio.Task[list[int]]:
    async def answer() -> list[int]:
        return [t async for events in fleet.generate(REQUEST) for e in events for t in e.token_ids]

    return asyncio.create_task(answer())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_remote_that_has_refused_is_not_asked_again() -> None:
    """Although it is less busy than the replica of ours that takes the request."""
    ours, remote = FakeReplica("ours"), FakeReplica("remote", ours=False, refuses=99)
    fleet = fleet_of(ours, remote)
    fleet.members["ours"].load.running = 50
    asked = asking(fleet)
    await until(lambda: ours.asked)
    ours.say(7, last=True)
    assert await asked == [7]
    assert len(remote.asked) == 1


async def test_among_remotes_alone_a_refusal_is_not_the_last_word() -> None:
    """They are asked again, so often and no more."""
    remotes = [FakeReplica(name, ours=False, refuses=5) for name in ("a", "b")]
    asked = asking(fleet_of(*remotes))
    await until(lambda: any(r.in_flight for r in remotes))
    next(r for r in remotes if r.in_flight).say(7, last=True)
    assert await asked == [7]
    for remote in remotes:
        remote.refuses = 99
    with pytest.raises(EngineUnavailable, match="12 attempts"):
        await asking(fleet_of(*remotes))


async def test_a_refusal_is_forgotten_where_nobody_else_comes() -> None:
    """A replica of ours is awaited first, but not for ever."""
    remote = FakeReplica("remote", ours=False, refuses=1)
    fleet = fleet_of(remote, holds=True, again_s=0.05)
    asked = asking(fleet)
    await until(lambda: fleet.held)
    assert len(remote.asked) == 1
    await until(lambda: len(remote.asked) == 2)
    remote.say(7, last=True)
    assert await asked == [7]


async def test_a_move_is_not_tried_twice_where_it_was_refused() -> None:
    """The request stays where it is, and goes on."""
    ours, remote = FakeReplica("ours"), FakeReplica("remote", ours=False, ready=False, refuses=99)
    fleet = fleet_of(ours, remote)
    asked = asking(fleet)
    await until(lambda: ours.asked)
    ours.say(7)
    remote.become(ready=True)
    await fleet.drain("ours", grace_s=0.2)
    assert len(remote.asked) == 1
    ours.say(8, last=True)
    assert await asked == [7, 8]


@pytest.mark.parametrize(
    "trouble", [EngineUnavailable("out of memory"), InvalidModel("no folder /srv/model")]
)
async def test_requests_wait_while_starts_fail(trouble: StoaError) -> None:
    """Also one that has spoken: machines fail, and a model that was there before may be repaired."""
    ours = FakeReplica("ours")
    fleet = fleet_of(ours, holds=True)
    asked = asking(fleet)
    await until(lambda: ours.asked)
    ours.say(7)
    ours.lose()
    ours.become(ready=False)
    fleet.hopeless = trouble
    fleet.changed()
    await until(lambda: fleet.held)
    ours.become(ready=True)
    await until(lambda: len(ours.asked) == 2)
    assert ours.asked[-1].so_far == [[7]]
    ours.say(8, last=True)
    assert await asked == [7, 8]


async def test_requests_are_refused_where_no_engine_can_ever_start() -> None:
    """By 503, without the operator's paths; while a start is under way they wait, and where a remote may take them."""
    fleet = fleet_of(holds=True)
    fleet.hopeless = InvalidModel("no folder /srv/model", param="model")
    with pytest.raises(EngineUnavailable) as caught:
        await asking(fleet)
    assert "/srv" not in caught.value.message
    remote = FakeReplica("remote", ours=False, ready=False)
    fleet.add(remote)
    asked = asking(fleet)
    await until(lambda: fleet.held)
    remote.become(ready=True)
    await until(lambda: remote.asked)
    remote.say(7, last=True)
    assert await asked == [7]
    fleet.starting = 1
    await fleet.remove("remote")
    asked = asking(fleet)
    await until(lambda: fleet.held)
    fleet.starting = 0
    fleet.changed()
    with pytest.raises(EngineUnavailable):
        await asked
