"""The process that waits, with everything imported, while a fleet on this machine has no replica."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stoa.engine.config import EngineConfig
from stoa.fleet.backends.local import LocalBackend
from stoa.fleet.backends.process import EngineProcess
from tests.fleet.test_membership import FACTORY, HERE


class Machine:
    """A backend that keeps a spare, and is looked at until something is so."""

    def __init__(self, factory: str = FACTORY) -> None:
        self.backend = LocalBackend(
            EngineConfig(model="fake"), offer=HERE, most=2, factory=factory, spare=True
        )
        self.seen: list[EngineProcess] = []

    @property
    def spare(self) -> EngineProcess | None:
        return self.backend._spare[0] if self.backend._spare is not None else None

    async def look(self) -> EngineProcess | None:
        await self.backend.look()
        if self.spare is not None and self.spare not in self.seen:
            self.seen.append(self.spare)
        return self.spare

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await self.look()
                await asyncio.sleep(0.01)

    async def ready(self, replica_id: str) -> int:
        """Its process, once it listens."""
        running = self.backend._running[replica_id].process
        await self.until(lambda: running.address)
        return running.pid


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    made = Machine()
    yield made
    await made.backend.close()
    assert not any(process.alive for process in made.seen)


async def test_a_spare_waits_while_there_is_no_replica(machine: Machine) -> None:
    """One, however often somebody looks; it loads nothing, and is no replica."""
    spare = await machine.look()
    assert spare is not None
    assert spare.waits
    assert await machine.look() is spare
    assert not await machine.backend.look()
    assert spare.alive
    assert not spare.address


async def test_the_first_replica_is_the_spare_and_another_follows_it(machine: Machine) -> None:
    """There is none while a replica runs, which a second one starts beside as any does; once both are given back there is
    one again."""
    spare = await machine.look()
    assert spare is not None
    await machine.backend.launch("a", HERE)
    assert await machine.ready("a") == spare.pid
    assert machine.spare is None
    await machine.backend.launch("b", HERE)
    assert await machine.ready("b") != spare.pid
    await machine.backend.stop("a")
    assert await machine.look() is None
    await machine.backend.stop("b")
    following = await machine.look()
    assert following is not None
    assert following.pid != spare.pid
    await machine.backend.launch("c", HERE)
    assert await machine.ready("c") == following.pid


async def test_a_spare_that_is_killed_is_replaced(machine: Machine) -> None:
    """At the next look, or by a process of its own at the next launch."""
    first = await machine.look()
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    await machine.until(lambda: machine.spare is not first)
    second = machine.spare
    assert second is not None
    assert second.alive
    os.kill(second.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while second.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await machine.backend.launch("a", HERE)
    assert await machine.ready("a") not in {first.pid, second.pid}


async def test_a_spare_that_cannot_start_is_not_tried_again_and_again() -> None:
    """Nobody wants it yet; the launch that does tells what is wrong."""
    machine = Machine("tests.fleet.no_such_module:Engine")
    spare = await machine.look()
    assert spare is not None
    await machine.until(lambda: not spare.alive)
    assert await machine.look() is spare
    await machine.backend.launch("a", HERE)
    async with asyncio.timeout(20):
        while (found := await machine.backend.look())[0].phase != "failed":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert found[0].trouble is not None
    assert "no_such_module" in found[0].trouble.message
    await machine.backend.close()


async def test_no_spare_outlives_its_backend(machine: Machine) -> None:
    """Nor does a look that comes late bring one."""
    spare = await machine.look()
    assert spare is not None
    await machine.backend.close()
    assert not spare.alive
    assert await machine.look() is None
