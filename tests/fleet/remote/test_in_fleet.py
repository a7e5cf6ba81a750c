"""Two remotes in one fleet: a client sees one stream, whatever either of them does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from stoa.engine.request import GenerationRequest, TokenEvent
from stoa.errors import InvalidRequest
from stoa.fleet.fleet import Fleet
from stoa.fleet.remote.breaker import Breaker, BreakerPolicy
from tests.fleet.remote.conftest import Bench, MakeBench, request
from tests.fleet.remote.fake_remote import cut, hang

TEXT = "A text that is long enough to be broken in many places, with é and 漢字."
PATIENT = Breaker(BreakerPolicy(pause_s=0.02, max_pause_s=0.05))


@asynccontextmanager
async def fleet_of_two(make: MakeBench) -> AsyncIterator[tuple[Fleet, list[Bench]]]:
    fleet, benches = Fleet(), []
    for i in range(2):
        bench: Bench = await make(
            fake={"text": TEXT},
            replica={"breaker": PATIENT},
            first_token_s=0.1,
            progress_s=0.1,
            when="always",
        )
        bench.replica.id = f"r{i}"
        fleet.add(bench.replica)
        benches.append(bench)
    try:
        yield fleet, benches
    finally:
        await fleet.stop(0)


async def answer(fleet: Fleet, asked: GenerationRequest) -> tuple[str, list[TokenEvent]]:
    events = [e async for batch in fleet.generate(asked) for e in batch]
    return "".join(e.text for e in events), events


async def test_a_broken_answer_goes_on_at_the_other(make: MakeBench) -> None:
    """Every token comes once, also where a character was cut in two."""
    async with fleet_of_two(make) as (fleet, benches):
        for chunks in range(1, 20):
            for bench in benches:
                bench.remote.script.clear()
                bench.remote.script.append(cut(chunks))
            text, events = await answer(fleet, request(f"r{chunks}"))
            assert text == TEXT
            assert len([t for e in events for t in e.token_ids]) == len(TEXT.encode())
            assert [e.finish_reason for e in events if e.finish_reason] == ["stop"]


async def test_a_planned_move_has_no_seam(make: MakeBench) -> None:
    """Every token comes once, also where chunks of several overlap with what had been said."""
    async with fleet_of_two(make) as (fleet, benches):
        for bench, step in zip(benches, (4, 7), strict=True):
            bench.remote.text, bench.remote.step, bench.remote.pause_s = TEXT * 5, step, 0.01
        asked = asyncio.create_task(answer(fleet, request(params={"max_tokens": 450})))
        await asyncio.sleep(0.05)
        for name in ("r0", "r1", "r0", "r1"):
            await fleet.drain(name, grace_s=5)
            fleet.members[name].draining = False
            fleet.changed()
        text, events = await asked
        assert text == TEXT * 5
        assert len([t for e in events for t in e.token_ids]) == len(TEXT.encode()) * 5
        assert len([b for bench in benches for b in bench.remote.bodies]) > 2


async def test_no_request_is_lost_while_both_fail_at_random(make: MakeBench) -> None:
    """A hundred requests over remotes of which every third answer breaks."""
    faults = [cut(1), cut(2), cut(5), hang(2)]
    rng = random.Random(5)
    async with fleet_of_two(make) as (fleet, benches):
        for bench in benches:
            whole = type(bench.remote).whole
            script = [rng.choice(faults) if i % 3 == 2 else whole for i in range(400)]
            bench.remote.script.extend(script)  # type: ignore[arg-type]
        places = asyncio.Semaphore(8)

        async def one(name: str) -> str:
            async with places:
                return (await answer(fleet, msgspec.structs.replace(request(), id=name)))[0]

        texts = await asyncio.gather(*(one(str(i)) for i in range(100)))
        assert texts == [TEXT] * 100


async def test_a_request_goes_where_it_can_be_carried(make: MakeBench) -> None:
    """From the beginning, and in the middle; where nobody can have it, it is refused with the reasons."""
    fleet = Fleet()
    plain: Bench = await make(fake={"text": TEXT, "step": 500}, dialect="openai", when="always")
    full: Bench = await make(fake={"text": TEXT}, when="fallback")
    full.replica.id = "full"
    for bench in (plain, full):
        fleet.add(bench.replica, handicap_s=bench.replica.config.handicap_s)
    try:
        assert (await answer(fleet, request("a", params={"top_k": 5})))[0] == TEXT
        assert not plain.remote.asked
        assert (await answer(fleet, request("b")))[0] == TEXT
        assert len(plain.remote.asked) == 1
        with pytest.raises(InvalidRequest, match="full: its context is 500 tokens; there: its context"):
            await answer(fleet, request("c", params={"max_tokens": 600}))
    finally:
        await fleet.stop(0)
