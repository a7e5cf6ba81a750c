"""A replica keeps its promises when its engine process dies, fills up, or is told to go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stoa.engine.config import EngineConfig
from stoa.engine.request import GenerationRequest
from stoa.errors import EngineUnavailable, QueueFull, UnsupportedModel
from stoa.fleet.replica import LocalReplica
from tests.fleet.fake_engine import POISON, STALL

FACTORY = "tests.fleet.fake_engine:FakeEngine"


@asynccontextmanager
async def replica(**options: Any) -> AsyncIterator[LocalReplica]:
    made = LocalReplica(EngineConfig(model="fake"), factory=FACTORY, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop(0)


def ask(name: str, tokens: int = 3, wait_ms: int = 0) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_token_ids=[tokens, wait_ms])


async def answer(replica: LocalReplica, request: GenerationRequest) -> list[int]:
    return [t async for events in replica.generate(request) for e in events for t in e.token_ids]


def kill(replica: LocalReplica) -> None:
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_requests_are_answered_side_by_side() -> None:
    """Each gets its own tokens, and nothing is left in flight."""
    async with replica() as r:
        answers = await asyncio.gather(*(answer(r, ask(str(i), i + 1)) for i in range(8)))
        assert answers == [list(range(i + 1)) for i in range(8)]
        assert r.in_flight == 0
        assert (await r.stats()).running == 0
        assert (r.kernels, r.max_model_len) == ("fake", 64)


async def test_what_had_produced_nothing_survives_the_engine() -> None:
    """kill -9 before the first token: the request runs again on the next engine, unseen by its client."""
    async with replica() as r:
        asked = asyncio.create_task(answer(r, ask("a", 3, wait_ms=300)))
        await asyncio.sleep(0.1)
        kill(r)
        assert await asked == [0, 1, 2]
        assert r.restarts == 1


async def test_what_had_begun_gets_a_clear_error() -> None:
    """kill -9 in mid-stream: EngineUnavailable, and the replica is up again afterwards."""
    async with replica() as r:
        stream = r.generate(ask("a", 1000))
        await anext(stream)
        kill(r)
        with pytest.raises(EngineUnavailable, match="stopped"):
            async for _ in stream:
                pass
        await until(lambda: r.ready)
        assert await answer(r, ask("b")) == [0, 1, 2]


async def test_a_request_that_ends_engine_after_engine_is_given_up() -> None:
    """It is run again once, in case it was innocent; then it fails, and the service goes on."""
    async with replica() as r:
        with pytest.raises(EngineUnavailable, match="stopped"):
            await answer(r, ask("poison", POISON))
        await until(lambda: r.ready)
        assert r.restarts == 2
        assert await answer(r, ask("b")) == [0, 1, 2]


async def test_an_engine_that_does_not_answer_is_replaced() -> None:
    """What waited for it runs on its successor."""
    async with replica(stall_s=0.6) as r:
        stuck = asyncio.create_task(answer(r, ask("stuck", STALL)))
        waiting = asyncio.create_task(answer(r, ask("b")))
        with pytest.raises(EngineUnavailable):
            await stuck
        with contextlib.suppress(EngineUnavailable):
            await waiting
        await until(lambda: r.ready)
        assert await answer(r, ask("c")) == [0, 1, 2]


async def test_random_kills_lose_no_request() -> None:
    """Whatever dies when: each request ends with all its tokens or with EngineUnavailable."""
    rng = random.Random(1)
    async with replica() as r:

        async def one(i: int) -> bool:
            await asyncio.sleep(rng.random() * 1.5)
            try:
                return await answer(r, ask(str(i), 5, wait_ms=rng.randint(0, 60))) == [0, 1, 2, 3, 4]
            except EngineUnavailable:
                return True

        asked = [asyncio.create_task(one(i)) for i in range(60)]
        for _ in range(2):
            await asyncio.sleep(0.5)
            await until(lambda: r.ready)
            kill(r)
        async with asyncio.timeout(30):
            assert all(await asyncio.gather(*asked))
        assert r.in_flight == 0


async def test_a_closed_stream_cancels_in_the_engine() -> None:
    """The engine has nothing left to run once the client is gone."""
    async with replica() as r:
        stream = r.generate(ask("a", 100000))
        await anext(stream)
        assert (await r.stats()).running == 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert (await r.stats()).running == 0


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    """QueueFull with at least a second; the place is free again afterwards."""
    async with replica(max_queue=2) as r:
        running = [asyncio.create_task(answer(r, ask(str(i), 20))) for i in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull) as caught:
            await answer(r, ask("more"))
        assert caught.value.retry_after_s >= 1
        await asyncio.gather(*running)
        assert await answer(r, ask("more")) == [0, 1, 2]


async def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    """stop() waits for running requests; new ones get EngineUnavailable."""
    async with replica() as r:
        running = asyncio.create_task(answer(r, ask("a", 40)))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(r.stop(10))
        await asyncio.sleep(0.02)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(r, ask("b"))
        assert await running == list(range(40))
        await stopping


async def test_a_hurried_stop_waits_no_longer() -> None:
    """A second signal ends the drain; what runs ends with an error."""
    async with replica() as r:
        running = asyncio.create_task(answer(r, ask("a", 100000)))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(r.stop(60))
        await asyncio.sleep(0.05)
        assert not r.ready
        r.hurry()
        async with asyncio.timeout(10):
            await stopping
        with pytest.raises(EngineUnavailable):
            await running


async def test_sigterm_to_the_engine_drains_it() -> None:
    """The engine process itself finishes its requests before it goes."""
    async with replica() as r:
        running = asyncio.create_task(answer(r, ask("a", 40)))
        await asyncio.sleep(0.05)
        assert r.pid is not None
        os.kill(r.pid, signal.SIGTERM)
        assert await running == list(range(40))


async def test_a_refusal_of_the_engine_reaches_the_caller() -> None:
    """As an event with the error's code."""
    async with replica() as r:
        events = [e async for batch in r.generate(ask("a", -1)) for e in batch]
        assert [(e.finish_reason, e.error_code) for e in events] == [("error", "invalid_request_error")]


@pytest.mark.parametrize(
    ("model", "error"), [("unsupported", UnsupportedModel), ("crash", EngineUnavailable)]
)
async def test_an_engine_that_cannot_start_says_why(model: str, error: type[Exception]) -> None:
    """Its typed error, or the end of what it printed."""
    r = LocalReplica(EngineConfig(model=model), factory=FACTORY)
    with pytest.raises(error, match=r"Fancy|no such device"):
        await r.start()
    await r.stop(0)
