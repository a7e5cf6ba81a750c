"""Engine processes that listen: several gateways share one, and leave it when it goes or is silent."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from structlog.testing import capture_logs

from stoa.economics.node import Node
from stoa.engine.config import EngineConfig
from stoa.engine.usage import Interval
from stoa.fleet.books import NoBooks
from stoa.fleet.fleet import Fleet
from stoa.fleet.linked import DistantReplica
from tests.fleet.test_fleet import FACTORY, Heard, answer, ask, until

TOKEN = "a secret of the cluster"


class NodeHeard(NoBooks):
    """Books of nodes that remember."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def started(self, now_ns: int, pool_bytes: int) -> None:
        self.heard.append(now_ns)

    def interval(self, interval: Interval) -> None:
        self.heard.append(interval)


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A listening engine process, and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stoa.fleet.worker", "--listen", "127.0.0.1:0", "--factory", FACTORY,
        "--config", msgspec.json.encode(EngineConfig(model="fake")).decode(),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "STOA_LINK_TOKEN": TOKEN},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("stoa-listening:"), line
        yield f"127.0.0.1:{int(line.split()[1])}", process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


@asynccontextmanager
async def gateway(
    *addresses: str, token: str = TOKEN, books: Any = None, silence_s: float = 30.0
) -> AsyncIterator[Fleet]:
    fleet = Fleet(books=books)
    replicas = [
        DistantReplica(f"r{i}", Node(zone=f"zone-{i}"), address, token, silence_s=silence_s)
        for i, address in enumerate(addresses)
    ]
    for replica in replicas:
        fleet.add(replica)
        await replica.start()
    try:
        yield fleet
    finally:
        await fleet.stop(0)


async def work_for_a_second(fleet: Fleet) -> None:
    for _ in range(4):
        await answer(fleet, ask("a", 100))
        await asyncio.sleep(0.3)


async def test_several_gateways_share_an_engine() -> None:
    """Each gets its own answers, also under the same request ids one after the other."""
    async with worker() as (address, _), gateway(address) as one, gateway(address) as two:
        await until(lambda: one.ready and two.ready)
        asked = [answer(g, ask(f"{name}{i}", 20)) for i in range(5) for name, g in (("a", one), ("b", two))]
        assert await asyncio.gather(*asked) == [list(range(20))] * 10
        assert await answer(two, ask("a0")) == [0, 1, 2]


async def test_a_gateway_that_leaves_takes_its_requests_along() -> None:
    """The engine drops them; those of others go on."""
    async with worker() as (address, _), gateway(address) as stays:
        await until(lambda: stays.ready)
        async with gateway(address) as leaves:
            await until(lambda: leaves.ready)
            stream = leaves.generate(ask("a", 100000))
            await anext(stream)
            other = asyncio.create_task(answer(stays, ask("b", 100)))
            await until(lambda: bool(stays.in_flight))
            await stream.aclose()  # type: ignore[attr-defined]
        assert await other == list(range(100))
        assert (await stays.stats()).running == 0


async def test_one_gateway_keeps_the_books_and_another_goes_on_with_them() -> None:
    """Intervals follow each other without gap or overlap, whoever hears them."""
    first, second = NodeHeard(), NodeHeard()
    async with worker() as (address, _):
        async with gateway(address, books=first) as one:
            await until(lambda: one.ready)
            async with gateway(address, books=second) as two:
                await until(lambda: two.ready)
                await work_for_a_second(one)
                await until(lambda: len(first.heard) > 1)
                assert not second.heard
                await one.stop(0)
                await until(lambda: len(second.heard) > 0)
                await work_for_a_second(two)
                await until(lambda: len(second.heard) > 1)
        intervals = [h for h in (*first.heard, *second.heard) if isinstance(h, Interval)]
        assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(intervals))
        assert first.heard[0] == intervals[0].start_ns
        assert second.heard[0] == second.heard[1].start_ns


async def test_a_wrong_token_opens_nothing() -> None:
    """No hello, no answer."""
    async with worker() as (address, _), gateway(address, token="guess") as fleet:
        await asyncio.sleep(0.3)
        assert not fleet.ready
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"\xff\xff\xff\xff garbage")
        assert await reader.read() == b""
        writer.close()
    async with worker() as (address, _), gateway(address) as fleet:
        await until(lambda: fleet.ready)


async def test_one_that_was_there_and_is_gone_is_not_said_to_come() -> None:
    """Its controller tells of it; only one that has never answered is waited for aloud."""
    with capture_logs() as logs:
        async with worker() as (address, process), gateway(address) as fleet:
            await until(lambda: fleet.ready)
            process.kill()
            await until(lambda: len([e for e in logs if "error" in e]) > 1)
        async with gateway(address) as fleet:
            await asyncio.sleep(0.1)
    said = [(e["event"], e["log_level"]) for e in logs if "error" in e]
    assert set(said[:2]) == {("a replica does not answer any more", "debug")}
    assert said[-1] == ("a replica does not answer yet", "info")


async def test_a_silent_replica_loses_its_streams_to_another() -> None:
    """Its process is there, its connection is up, nothing comes: as when the network is cut. It is taken again when it
    is back."""
    books = Heard()
    async with (
        worker() as (a, first),
        worker() as (b, second),
        gateway(a, b, books=books, silence_s=1.5) as fleet,
    ):
        await until(lambda: all(m.replica.ready for m in fleet.members.values()))
        asked = [asyncio.create_task(answer(fleet, ask(str(i), 250))) for i in range(8)]
        await until(lambda: all(m.legs for m in fleet.members.values()))
        await asyncio.sleep(0.1)
        first.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*asked) == [list(range(250))] * 8
        assert not fleet.members["r0"].replica.ready
        await until(lambda: not books.open)
        first.send_signal(signal.SIGCONT)
        await until(lambda: fleet.members["r0"].replica.ready)
        assert second.returncode is None


async def test_sigterm_lets_a_listening_engine_finish() -> None:
    """What runs there ends there; then the process ends."""
    async with worker() as (address, process), gateway(address) as fleet:
        await until(lambda: fleet.ready)
        asked = asyncio.create_task(answer(fleet, ask("a", 100)))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert await asked == list(range(100))
        assert await process.wait() == 0
