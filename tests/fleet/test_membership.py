"""A gateway's fleet follows its controller: engines on this machine come, go, die and hang while requests run."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest
from stoa.errors import EngineUnavailable, UnsupportedModel
from stoa.fleet.backends.local import LocalBackend
from stoa.fleet.controller import Controller, Pace
from stoa.fleet.fleet import Fleet
from stoa.fleet.membership import Membership, NearControls
from stoa.fleet.policies.facts import Bounds, Decision, Launch, Offer, Slo, Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.fleet.reports import ClusterUnreachable, FleetState, GatewayReport

FACTORY = "tests.fleet.fake_engine:FakeEngine"
HERE = Offer("local", "on_demand", 1.0, 1.0)


class OnDemand:
    """Keeps `wanted` replicas, or one while somebody waits. Drains what is above, the oldest first."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        alive = [r for r in seen.replicas if r.state != "draining"]
        wanted = self.wanted or int(seen.demand.held > 0 or any(r.running for r in alive))
        launch = [Launch(HERE, wanted - len(alive))] if wanted > len(alive) else []
        return Decision(launch, [r.id for r in alive[: max(0, len(alive) - wanted)]]), None


class World:
    """A fleet, its membership, and the controller with the engines it has started."""

    def __init__(self, wanted: int = 0, model: str = "fake", **pace: Any) -> None:
        self.policy = OnDemand(wanted)
        self.backend = LocalBackend(EngineConfig(model=model), offer=HERE, most=4, factory=FACTORY)
        self.controller = Controller(
            backend=self.backend,
            policy=self.policy,
            profile=Profile(name="p", fixed_s=0.01, prompt_row_s=1e-4, decode_row_s=1e-4),
            slo=Slo(2.0),
            bounds=Bounds(0, 4),
            clock=time.monotonic,
            pace=Pace(**{"tick_s": 0.05, "settle_s": 0.0} | pace),
            new_id=lambda: secrets.token_hex(4),
        )
        self.fleet = Fleet(hold_s=20.0)
        self.fleet.holds = True
        self.membership = Membership(
            self.fleet, NearControls(self.controller), gateway="g", slots=64, period_s=0.1, learn_s=0.1
        )

    def pid(self, replica_id: str) -> int:
        return self.backend._running[replica_id].process.pid

    @property
    def ready(self) -> list[str]:
        return [i for i, m in self.fleet.members.items() if m.replica.ready and not m.draining]

    async def answer(self, name: str, tokens: int, wait_ms: int = 0) -> list[int]:
        request = GenerationRequest(id=name, prompt_token_ids=[tokens, wait_ms])
        return [t async for events in self.fleet.generate(request) for e in events for t in e.token_ids]

    async def until_ready(self, count: int) -> list[str]:
        async with asyncio.timeout(30):
            while len(self.ready) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self.ready


@asynccontextmanager
async def world(*args: Any, **options: Any) -> AsyncIterator[World]:
    made = World(*args, **options)
    made.membership.start()
    try:
        yield made
    finally:
        await made.membership.hold_still()
        await made.fleet.stop(0)
        await made.membership.close()
        assert not made.backend._running


async def test_the_first_request_brings_a_replica_and_waits_for_it() -> None:
    """From nothing: held, not refused; and afterwards the replica is given back."""
    async with world() as w:
        assert await w.answer("a", 3) == [0, 1, 2]
        await w.until_ready(0)
        async with asyncio.timeout(10):
            while w.backend._running:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await w.answer("b", 3) == [0, 1, 2]


async def test_a_drained_replica_loses_nothing() -> None:
    """Its requests go on elsewhere with the same tokens, then it ends."""
    async with world(2) as w:
        await w.until_ready(2)
        asked = [asyncio.create_task(w.answer(str(i), 300)) for i in range(8)]
        await asyncio.sleep(0.3)
        w.policy.wanted = 1
        await w.until_ready(1)
        assert await asyncio.gather(*asked) == [list(range(300))] * 8
        async with asyncio.timeout(10):
            while len(w.backend._running) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_killed_replica_is_replaced_and_its_requests_go_on() -> None:
    """kill -9 in mid-stream of the only one: the next one continues."""
    async with world(1) as w:
        (replica,) = await w.until_ready(1)
        asked = asyncio.create_task(w.answer("a", 200))
        await asyncio.sleep(0.2)
        os.kill(w.pid(replica), signal.SIGKILL)
        assert await asked == list(range(200))
        assert w.ready != [replica]


async def test_a_replica_that_hangs_is_replaced() -> None:
    """Its process answers pings, its engine is stuck: nobody waits for it for ever."""
    async with world(1, stall_s=1.5) as w:
        (replica,) = await w.until_ready(1)
        stuck = asyncio.create_task(w.answer("stuck", -3))
        async with asyncio.timeout(30):
            while replica in w.fleet.members:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)


async def test_a_hot_adapter_comes_to_all_replicas() -> None:
    """While requests ask for it; each engine is told by itself."""
    async with world(2) as w:
        replicas = await w.until_ready(2)
        for i in range(20):
            request = GenerationRequest(
                id=str(i), prompt_token_ids=[1, 0], adapter=AdapterRef(id="hot", path="nowhere")
            )
            assert [e async for events in w.fleet.generate(request) for e in events]

        async def holds(replica: str) -> bool:
            return "hot" in (await w.fleet.members[replica].replica.stats()).held_adapters

        async with asyncio.timeout(10):
            while not all([await holds(replica) for replica in replicas]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_model_that_cannot_start_ends_held_requests() -> None:
    """Soon, and without the engine's own words, which are for operators; once it is repaired, requests are answered."""
    async with world(model="unsupported") as w:
        with pytest.raises(EngineUnavailable) as caught:
            await w.answer("a", 3)
        assert "Fancy" not in caught.value.message
        assert isinstance(w.fleet.hopeless, UnsupportedModel)
        assert not w.fleet.ready
        w.backend._config = EngineConfig(model="fake")
        w.policy.wanted = 1
        await w.until_ready(1)
        assert w.fleet.ready
        assert await w.answer("b", 3) == [0, 1, 2]


async def test_who_waits_in_vain_is_told_why_no_machine_came() -> None:
    """As is the log, once."""
    async with world() as w:
        w.backend._most = 0
        w.fleet.hold_s = 1.0
        with (
            capture_logs() as logs,
            pytest.raises(EngineUnavailable, match=r"\(local .*room for 0 replicas\)"),
        ):
            await w.answer("a", 3)
        assert [e["log_level"] for e in logs if "room for 0 replicas" in e.get("reasons", "")] == ["warning"]


async def test_without_its_controller_a_fleet_goes_on() -> None:
    """Replicas stay, requests are answered; when it answers again, all is as before."""
    async with world(1) as w:
        (replica,) = await w.until_ready(1)
        controls = w.membership._controls
        report = controls.report

        async def unreachable(report: GatewayReport) -> FleetState:
            raise ClusterUnreachable("nobody there")

        controls.report = unreachable  # type: ignore[method-assign]
        await asyncio.sleep(0.3)
        assert await w.answer("a", 3) == [0, 1, 2]
        controls.report = report  # type: ignore[method-assign]
        await asyncio.sleep(0.3)
        assert w.ready == [replica]


async def test_a_controller_that_does_not_know_yet_takes_nothing_away() -> None:
    """Its first answers are empty; the fleet keeps what it has."""
    async with world(1) as w:
        (replica,) = await w.until_ready(1)
        await w.membership.carry_out(FleetState(epoch="new", version=1, known=False))
        assert w.ready == [replica]
