"""What runs in Ray's worker processes: a replica's supervisor, and a fleet's controller."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import msgspec
import structlog

from stoa.engine.config import EngineConfig
from stoa.fleet.backends.interface import Phase
from stoa.fleet.backends.process import EngineProcess
from stoa.fleet.cluster.plan import Plan, make_policy
from stoa.fleet.controller import Controller, Pace
from stoa.fleet.notices import AwsSpot, AzureEvents, GcpPreempted, Notices, NoticeSource
from stoa.fleet.policies.facts import Bounds, Market, Slo
from stoa.fleet.reports import FleetState, GatewayReport, Trouble

log = structlog.get_logger("stoa.fleet")
_ASK_S = 2.0  # between two questions to the metadata service


class ReplicaOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's actor is told when it is made."""

    id: str
    engine: EngineConfig
    factory: str
    token: str
    zone: str
    market: Market
    hourly: float
    startup_s: float
    notice_s: float
    metadata: dict[str, str]


class ReplicaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What it answers. The offer is repeated for a controller that has just started."""

    phase: Phase
    zone: str
    market: Market
    hourly: float
    startup_s: float
    node: str
    token: str
    address: str = ""
    ends_in_s: float | None = None
    trouble: Trouble | None = None
    gone: bool = False  # it was ready, and its engine has ended


class ReplicaActor:
    """Starts one engine process on its node and tells how it is. It is a synchronous actor: Ray runs its methods, and
    so signal handlers, on the main thread. The engine ends with the actor's process."""

    def __init__(self, order: bytes) -> None:
        import ray

        self._order = order_ = msgspec.msgpack.decode(order, type=ReplicaOrder)
        self._node = ray.get_runtime_context().get_node_id()
        sources = _sources(order_.metadata) if order_.market == "spot" else []
        self._notices = Notices(sources, clock=time.monotonic)
        signal.signal(signal.SIGTERM, lambda *_: self._notices.heard(order_.notice_s))
        self._process = EngineProcess(
            order_.engine,
            host=ray.util.get_node_ip_address(),
            token=order_.token,
            factory=order_.factory,
        )
        threading.Thread(target=self._ask, daemon=True).start()

    def look(self) -> bytes:
        process, trouble = self._process, self._process.trouble()
        phase: Phase = "failed" if trouble else "ready" if process.address else "starting"
        order = self._order
        return msgspec.msgpack.encode(
            ReplicaFacts(
                phase=phase,
                zone=order.zone,
                market=order.market,
                hourly=order.hourly,
                startup_s=order.startup_s,
                node=self._node,
                token=order.token,
                address=process.address,
                ends_in_s=self._notices.ends_in_s(),
                trouble=trouble,
                gone=not trouble and not process.alive,
            )
        )

    def end(self) -> None:
        self._process.end()

    def _ask(self) -> None:
        while self._notices.any_sources:
            self._notices.ask()
            time.sleep(_ASK_S)


def _sources(metadata: dict[str, str]) -> list[NoticeSource]:
    kinds: dict[str, Any] = {"aws": AwsSpot, "gcp": GcpPreempted, "azure": AzureEvents}
    if metadata:
        return [kinds[cloud](url) for cloud, url in metadata.items()]
    return [kind() for kind in kinds.values()]


class ControllerActor:
    """An asynchronous actor. Ray starts it again when it ends; what exists then is found by name."""

    def __init__(self, plan: bytes) -> None:
        import ray

        from stoa.fleet.cluster.backend import RayBackend

        self._plan = told = msgspec.msgpack.decode(plan, type=Plan)
        self._controller = Controller(
            backend=RayBackend(told),
            policy=make_policy(told.policy),
            profile=told.profile,
            slo=Slo(told.ttft_s, told.attainment),
            bounds=Bounds(told.min_replicas, told.max_replicas, told.idle_s),
            clock=time.monotonic,
            pace=Pace(tick_s=told.tick_s, orphan_s=told.orphan_s, provision_s=max(30.0, told.provision_s)),
        )
        self._running: asyncio.Task[None] | None = None
        ray.get_runtime_context().current_actor.run.remote()  # also when nobody calls after a restart

    async def run(self) -> None:
        """Makes the loop run, if it does not yet."""
        if self._running is None:
            self._running = asyncio.create_task(self._controller.run())
            asyncio.create_task(self._end_when_deserted())  # noqa: RUF006

    async def report(self, report: bytes) -> bytes:
        await self.run()
        state: FleetState = self._controller.report(msgspec.msgpack.decode(report, type=GatewayReport))
        return msgspec.msgpack.encode(state)

    async def plan(self) -> bytes:
        """What its first gateway wanted."""
        return msgspec.msgpack.encode(self._plan)

    async def _end_when_deserted(self) -> None:
        import ray

        while not self._controller.deserted:  # noqa: ASYNC110
            await asyncio.sleep(self._plan.tick_s)
        log.info("no gateway is left; the fleet's controller ends", fleet=self._plan.name)
        ray.get_runtime_context().current_actor.end.remote()

    async def end(self) -> None:
        """An actor that ends itself in a method is not started again."""
        import ray

        ray.actor.exit_actor()
