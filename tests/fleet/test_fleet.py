"""Requests keep their promises when engine processes die, fill up, or are told to go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.usage import RequestUsage
from stoa.errors import EngineUnavailable, QueueFull, UnsupportedModel
from stoa.fleet.books import NoBooks
from stoa.fleet.fleet import Fleet
from stoa.fleet.local import LocalReplica
from tests.fleet.fake_engine import POISON, STALL

FACTORY = "tests.fleet.fake_engine:FakeEngine"


class Heard(NoBooks):
    """Books that remember."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.usages: dict[str, tuple[RequestUsage, int]] = {}

    def begun(self, request_id: str) -> None:
        assert request_id not in self.open
        self.open.add(request_id)

    def used(self, usage: RequestUsage, cost_nanos: int, lost_tokens: int) -> None:
        self.open.remove(usage.request_id)
        assert usage.request_id not in self.usages
        self.usages[usage.request_id] = (usage, lost_tokens)


class Receiving:
    """Remembers events until the end."""

    def __init__(self, heard: list[TokenEvent]) -> None:
        self.heard, self.over = heard, asyncio.Event()

    def events(self, events: list[TokenEvent]) -> None:
        self.heard += events

    def used(self, usage: RequestUsage, cost_nanos: int) -> None:
        self.over.set()

    def lost(self) -> None:
        self.over.set()


@asynccontextmanager
async def running(count: int = 1, *, books: Any = None, **options: Any) -> AsyncIterator[Fleet]:
    """A fleet of so many engine processes."""
    fleet = Fleet(books=books, max_queue=options.pop("max_queue", 1024))
    for i in range(count):
        made = LocalReplica(EngineConfig(model="fake"), id=f"r{i}", factory=FACTORY, **options)
        fleet.add(made)
    await asyncio.gather(*(replica.start() for replica in locals_of(fleet)))
    try:
        yield fleet
    finally:
        await fleet.stop(0)


def locals_of(fleet: Fleet) -> list[LocalReplica]:
    return [m.replica for m in fleet.members.values() if isinstance(m.replica, LocalReplica)]


def ask(name: str, tokens: int = 3, wait_ms: int = 0, n: int = 1) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_token_ids=[tokens, wait_ms], n=n)


async def answer(fleet: Fleet, request: GenerationRequest) -> list[int]:
    return [t async for events in fleet.generate(request) for e in events for t in e.token_ids]


def kill(fleet: Fleet, which: int = 0, number: int = signal.SIGKILL) -> None:
    pid = locals_of(fleet)[which].pid
    assert pid is not None
    os.kill(pid, number)


def where(fleet: Fleet) -> int:
    """Which replica has the only request."""
    return next(i for i, m in enumerate(fleet.members.values()) if m.legs)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_requests_are_answered_side_by_side() -> None:
    """Each gets its own tokens, and nothing is left in flight."""
    async with running() as fleet:
        answers = await asyncio.gather(*(answer(fleet, ask(str(i), i + 1)) for i in range(8)))
        assert answers == [list(range(i + 1)) for i in range(8)]
        assert fleet.in_flight == 0
        assert (await fleet.stats()).running == 0
        assert (fleet.kernels, fleet.max_model_len) == ("fake", 64)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tokens_before", [0, 5])
async def test_a_stream_survives_its_engine(count: int, tokens_before: int) -> None:
    """kill -9 before or after the first token: its client sees one answer, from the next engine or another replica."""
    books = Heard()
    async with running(count, books=books) as fleet:
        stream = fleet.generate(ask("a", 60, wait_ms=0 if tokens_before else 300))
        got: list[int] = []

        async def read() -> None:
            async for events in stream:
                got.extend(t for e in events for t in e.token_ids)

        reading = asyncio.create_task(read())
        await until(lambda: len(got) >= tokens_before and any(m.legs for m in fleet.members.values()))
        kill(fleet, where(fleet))
        await reading
        assert got == list(range(60))
        await until(lambda: not books.open)
        usage, lost = books.usages["a"]
        assert (usage.completion_tokens, usage.outcome, usage.prompt_tokens) == (60, "stop", 2)
        assert tokens_before <= lost < 60
        assert fleet.restarts == 1 or count == 2


async def test_a_request_that_ends_engine_after_engine_is_given_up() -> None:
    """It is tried three times, in case it was innocent; then it fails, and the service goes on."""
    async with running() as fleet:
        with pytest.raises(EngineUnavailable, match="stopped"):
            await answer(fleet, ask("poison", POISON))
        await until(lambda: fleet.ready)
        assert fleet.restarts == 3
        assert await answer(fleet, ask("b")) == [0, 1, 2]


async def test_an_engine_that_does_not_go_on_is_replaced() -> None:
    """Its process answers, its step does not end: what waited for it runs elsewhere."""
    async with running(2, stall_s=0.6) as fleet:
        stuck = asyncio.create_task(answer(fleet, ask("stuck", STALL)))
        await asyncio.sleep(0.1)
        asked = [asyncio.create_task(answer(fleet, ask(f"{i}"))) for i in range(6)]
        with pytest.raises(EngineUnavailable):
            await stuck
        for one in asked:
            with contextlib.suppress(EngineUnavailable):
                assert await one == [0, 1, 2]
        await until(lambda: fleet.ready)
        assert await answer(fleet, ask("c")) == [0, 1, 2]


async def test_random_kills_lose_nothing() -> None:
    """Whatever dies when, each request gets all its tokens, and is booked once."""
    rng = random.Random(1)
    books = Heard()
    async with running(3, books=books) as fleet:

        async def one(i: int) -> bool:
            await asyncio.sleep(rng.random() * 2.5)
            return await answer(fleet, ask(str(i), 50, wait_ms=rng.randint(0, 60))) == list(range(50))

        asked = [asyncio.create_task(one(i)) for i in range(80)]
        for _ in range(5):
            await asyncio.sleep(0.5)
            kill(fleet, rng.randrange(3))
        async with asyncio.timeout(30):
            assert all(await asyncio.gather(*asked))
        await until(lambda: not books.open)
        assert len(books.usages) == 80
        assert {u.completion_tokens for u, _ in books.usages.values()} == {50}


async def test_draining_a_replica_moves_its_streams_without_a_seam() -> None:
    """Each stream goes on elsewhere with the next token; nothing new comes to the replica, which ends empty."""
    books = Heard()
    async with running(2, books=books) as fleet:
        asked = [asyncio.create_task(answer(fleet, ask(str(i), 150))) for i in range(8)]
        await asyncio.sleep(0.2)
        assert all(m.legs for m in fleet.members.values())
        await fleet.drain("r0", grace_s=5)
        assert not fleet.members["r0"].legs
        more = [asyncio.create_task(answer(fleet, ask(f"more-{i}"))) for i in range(4)]
        assert await asyncio.gather(*more) == [[0, 1, 2]] * 4
        await fleet.remove("r0")
        assert list(fleet.members) == ["r1"]
        assert await asyncio.gather(*asked) == [list(range(150))] * 8
        await until(lambda: not books.open)
        assert {u.completion_tokens for u, _ in books.usages.values() if u.completion_tokens > 3} == {150}


async def test_the_last_replica_takes_requests_while_it_drains() -> None:
    """Until another one is there, to which they move."""
    async with running(1) as fleet:
        asked = asyncio.create_task(answer(fleet, ask("a", 200)))
        draining = asyncio.create_task(fleet.drain("r0", grace_s=10))
        await asyncio.sleep(0.05)
        assert await answer(fleet, ask("b")) == [0, 1, 2]
        other = LocalReplica(EngineConfig(model="fake"), id="r1", factory=FACTORY)
        fleet.add(other)
        await other.start()
        await draining
        assert not fleet.members["r0"].legs
        assert await asked == list(range(200))


async def test_removing_a_replica_at_once_moves_its_streams_too() -> None:
    """Without time to catch up they go on from what has been said."""
    async with running(2) as fleet:
        asked = [asyncio.create_task(answer(fleet, ask(str(i), 100))) for i in range(6)]
        await asyncio.sleep(0.1)
        await fleet.remove("r1")
        assert await asyncio.gather(*asked) == [list(range(100))] * 6


async def test_requests_are_held_while_there_is_no_replica() -> None:
    """A fleet of none that holds is ready; the first replica gets what waited."""
    fleet = Fleet()
    fleet.holds = True
    assert fleet.ready
    asked = asyncio.create_task(answer(fleet, ask("a")))
    await asyncio.sleep(0.05)
    assert (fleet.held, len(fleet.visits.waiting)) == (1, 1)
    made = LocalReplica(EngineConfig(model="fake"), factory=FACTORY)
    fleet.add(made)
    await made.start()
    assert await asked == [0, 1, 2]
    await fleet.stop(0)


async def test_held_requests_learn_that_no_replica_will_come() -> None:
    """Because no engine can start, or after the time they may wait."""
    fleet = Fleet(hold_s=0.05)
    with pytest.raises(EngineUnavailable, match=r"0\.05 s"):
        await answer(fleet, ask("a"))
    fleet.hold_s = 60
    asked = asyncio.create_task(answer(fleet, ask("b")))
    await asyncio.sleep(0.01)
    fleet.hopeless = UnsupportedModel("architecture Fancy is not supported")
    fleet.changed()
    with pytest.raises(EngineUnavailable, match="no replica can be started"):
        await asked


async def test_a_request_goes_where_its_adapter_is() -> None:
    """Also if somebody else has brought it there."""
    async with running(3) as fleet:
        ref = AdapterRef(id="poet", path="nowhere")
        fleet.members["r1"].replica.warm(ref)
        await fleet.learn_residency()
        for i in range(6):
            stream = fleet.generate(msgspec.structs.replace(ask(str(i), 1000), adapter=ref))
            await anext(stream)
            assert fleet.members["r1"].legs
            await stream.aclose()  # type: ignore[attr-defined]
            await until(lambda: not fleet.members["r1"].legs)


async def test_statistics_leave_out_who_does_not_answer() -> None:
    """One replica is silent, the other's are told."""
    async with running(2) as fleet:
        stream = fleet.generate(ask("a", 100000))
        await anext(stream)
        silent = 1 - where(fleet)
        kill(fleet, silent, signal.SIGSTOP)
        assert (await fleet.stats()).running == 1
        kill(fleet, silent, signal.SIGCONT)
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_closed_stream_cancels_in_the_engine() -> None:
    """The engine has nothing left to run once the client is gone, and the books know what it took."""
    books = Heard()
    async with running(books=books) as fleet:
        stream = fleet.generate(ask("a", 100000))
        await anext(stream)
        assert (await fleet.stats()).running == 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert (await fleet.stats()).running == 0
        await until(lambda: "a" in books.usages)
        assert books.usages["a"][0].outcome == "cancelled"


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    """QueueFull with at least a second; the place is free again afterwards."""
    async with running(max_queue=2) as fleet:
        asked = [asyncio.create_task(answer(fleet, ask(str(i), 20))) for i in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull) as caught:
            await answer(fleet, ask("more"))
        assert caught.value.retry_after_s >= 1
        await asyncio.gather(*asked)
        assert await answer(fleet, ask("more")) == [0, 1, 2]


async def test_stopping_finishes_what_runs_and_refuses_the_rest() -> None:
    """stop() waits for running requests; new ones get EngineUnavailable."""
    async with running() as fleet:
        asked = asyncio.create_task(answer(fleet, ask("a", 40)))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(fleet.stop(10))
        await asyncio.sleep(0.02)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(fleet, ask("b"))
        assert await asked == list(range(40))
        await stopping


async def test_a_hurried_stop_waits_no_longer() -> None:
    """A second signal ends the drain; what runs ends with an error, and is booked."""
    books = Heard()
    async with running(books=books) as fleet:
        asked = asyncio.create_task(answer(fleet, ask("a", 100000)))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(fleet.stop(60))
        await asyncio.sleep(0.05)
        assert not fleet.ready
        fleet.hurry()
        async with asyncio.timeout(10):
            await stopping
        with pytest.raises(EngineUnavailable):
            await asked
        assert books.usages["a"][0].outcome == "cancelled"


async def test_a_refusal_of_the_engine_reaches_the_caller() -> None:
    """As an event with the error's code."""
    async with running() as fleet:
        events = [e async for batch in fleet.generate(ask("a", -1)) for e in batch]
        assert [(e.finish_reason, e.error_code) for e in events] == [("error", "invalid_request_error")]


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": float("nan")}, {"waited_s": float("inf")}])
async def test_numbers_that_would_end_an_engine_are_refused_at_its_door(wrong: dict[str, float]) -> None:
    """That request only; the next one is answered by the same engine."""
    async with running() as fleet:
        link = locals_of(fleet)[0].link
        assert link is not None
        asked = msgspec.structs.replace(ask("a"), **wrong)
        heard: list[TokenEvent] = []
        receiver = Receiving(heard)
        link.open(asked, receiver)
        await receiver.over.wait()
        assert [(e.finish_reason, e.error_param) for e in heard] == [("error", next(iter(wrong)))]
        assert await answer(fleet, ask("b")) == [0, 1, 2]
        assert fleet.restarts == 0


@pytest.mark.parametrize(
    ("model", "error"), [("unsupported", UnsupportedModel), ("crash", EngineUnavailable)]
)
async def test_an_engine_that_cannot_start_says_why(model: str, error: type[Exception]) -> None:
    """Its typed error, or the end of what it printed."""
    made = LocalReplica(EngineConfig(model=model), factory=FACTORY)
    with pytest.raises(error, match=r"Fancy|no such device"):
        await made.start()
    await made.stop()
