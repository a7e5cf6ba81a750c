"""How one gateway's fleet keeps to what the controller says: reports, and carries out the answer.

While the controller does not answer, the fleet goes on with the replicas it has.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from stoa.economics.node import Node
from stoa.fleet.controller import Controller
from stoa.fleet.fleet import Fleet
from stoa.fleet.linked import DistantReplica
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.reports import (
    ClusterUnreachable,
    FleetState,
    GatewayReport,
    PlanNews,
    ReplicaPlace,
    ReplicaUse,
    Trouble,
)

log = structlog.get_logger("stoa.fleet")
_HELD_S = 0.1  # between two reports while requests wait for a replica
_LEAST_S = 0.02  # between two reports, however many wait
_LEARN_S = 5.0  # between two questions to replicas for the adapters that they hold, and what follows from it
_FOR_EVER_S = 86_400.0  # the controller ends a drain, not we


class Controls(Protocol):
    """A controller, here or elsewhere. Implemented by `NearControls` and `cluster.controls.RayControls`."""

    async def report(self, report: GatewayReport) -> FleetState:
        """Raises ClusterUnreachable."""
        ...

    async def hold_still(self) -> None:
        """No replica comes or goes any more, as far as this gateway is asked."""
        ...

    async def close(self) -> None: ...


class NearControls:
    """The controller runs in this process, and its replicas end with it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._running = asyncio.create_task(controller.run())

    async def report(self, report: GatewayReport) -> FleetState:
        return self._controller.report(report)

    async def hold_still(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def close(self) -> None:
        await self.hold_still()
        await self._controller.close(stop_all=True)


class Membership:
    """`gateway`: a name of this process and no other. `machine`: the type that prices speak of."""

    def __init__(
        self,
        fleet: Fleet,
        controls: Controls,
        *,
        gateway: str,
        slots: int,
        machine: str = "",
        period_s: float = 1.0,
        learn_s: float = _LEARN_S,
    ) -> None:
        self._fleet, self._controls = fleet, controls
        self._gateway, self._slots, self._machine = gateway, slots, machine
        self._period_s, self._learn_s = period_s, learn_s
        self._epoch, self._version = "", 0  # carried out
        self._replicas: dict[str, DistantReplica] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._nudged = asyncio.Event()
        self._reachable = True
        self._trouble: Trouble | None = None
        self._plan: PlanNews | None = None
        self._plan_s = 0.0  # of the one that the controller follows
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._running = [asyncio.create_task(self._run()), asyncio.create_task(self._learn())]

    def follow(self, plan: ModelPlan) -> None:
        """The controller hears of it with the next report."""
        self._plan = PlanNews(file=plan.file, model=plan.model, machine=plan.machine, read_s=plan.read_s)
        self._nudged.set()

    async def hold_still(self) -> None:
        """Before the fleet stops: what ends now is not replaced."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._controls.hold_still()

    async def _run(self) -> None:
        """Until `hold_still`."""
        self._fleet.on_held = self._nudge
        while True:
            self._nudged.clear()
            try:
                await self.exchange()
            except Exception:
                log.exception("the gateway stumbled over what the fleet's controller said")
            await asyncio.sleep(_LEAST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    min(self._period_s, _HELD_S) if self._fleet.held else self._period_s
                ):
                    await self._nudged.wait()

    async def _learn(self) -> None:
        """Until `hold_still`."""
        while True:
            await asyncio.sleep(self._learn_s)
            await self._fleet.learn_residency()
            self._fleet.place_adapters()

    def _nudge(self) -> None:
        """A request waits: if there is no replica at all, the report about it does not."""
        if not self._replicas:
            self._nudged.set()

    async def exchange(self) -> None:
        """One report, and what its answer asks for."""
        try:
            state = await self._controls.report(self.report())
        except ClusterUnreachable as error:
            if self._reachable:
                log.error("the fleet's controller does not answer; going on without", error=error.message)
            self._reachable = False
            return
        if not self._reachable:
            log.info("the fleet's controller answers again")
        self._reachable = True
        await self.carry_out(state)

    async def close(self) -> None:
        """After the fleet has stopped."""
        await self.hold_still()
        tasks = [*self._drains.values(), *self._leaving]
        for task in self._drains.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._controls.close()

    def report(self) -> GatewayReport:
        visits = self._fleet.visits
        visits.find_late()
        return GatewayReport(
            gateway=self._gateway,
            epoch=self._epoch,
            version=self._version,
            requests=visits.requests,
            prompt_tokens=visits.prompt_tokens,
            output_tokens=visits.output_tokens,
            late=visits.late,
            in_flight=self._fleet.in_flight,
            held=self._fleet.held,
            oldest_wait_s=visits.oldest_wait_s(),
            replicas={replica_id: self._use(replica_id) for replica_id in self._replicas},
            confined=self._fleet.confined(),
            plan=self._plan if self._plan is not None and self._plan.read_s > self._plan_s else None,
        )

    async def carry_out(self, state: FleetState) -> None:
        self._plan_s = state.plan_s
        if not state.known:
            return
        places = {place.id: place for place in state.replicas}
        for replica_id in self._replicas.keys() - places.keys():
            self._leave(replica_id)
        for place in state.replicas:
            if place.id not in self._replicas:
                if place.address and place.state == "ready":
                    await self._join(place)
            elif place.state == "draining":
                self._drain(place)
            else:
                self._undrain(place.id)
        self._fleet.starting = sum(place.state == "starting" for place in state.replicas)
        self._hear_refusals("; ".join(state.refusals))
        if state.trouble != self._trouble:
            self._trouble = state.trouble
            if state.trouble is not None:
                log.error("no replica can start", kind=state.trouble.kind, error=state.trouble.message)
            self._fleet.hopeless = state.trouble.error() if state.trouble else None
            self._fleet.changed()
        self._epoch, self._version = state.epoch, state.version

    def _hear_refusals(self, told: str) -> None:
        """A fleet that has replicas gets along: spot machines are often refused."""
        if told and told != self._fleet.refusals:
            say = log.info if self._replicas else log.warning
            say("no machine for a replica", reasons=told)
        self._fleet.refusals = told

    # -- one replica

    async def _join(self, place: ReplicaPlace) -> None:
        node = Node(name=place.node, machine=self._machine, zone=place.zone, market=place.market)
        replica = DistantReplica(place.id, node, place.address, place.token)
        self._replicas[place.id] = replica
        self._fleet.add(replica, slots=self._slots)
        await replica.start()

    def _drain(self, place: ReplicaPlace) -> None:
        """Before this returns, the replica gets nothing new."""
        if place.id in self._drains:
            return
        self._fleet.members[place.id].draining = True
        self._fleet.changed()
        grace_s = place.ends_in_s if place.ends_in_s is not None else _FOR_EVER_S
        self._drains[place.id] = asyncio.create_task(self._fleet.drain(place.id, grace_s))

    def _undrain(self, replica_id: str) -> None:
        """A controller that started anew does not know what the one before had in mind."""
        if (drain := self._drains.pop(replica_id, None)) is not None:
            drain.cancel()
            self._fleet.members[replica_id].draining = False
            self._fleet.changed()

    def _leave(self, replica_id: str) -> None:
        if (drain := self._drains.pop(replica_id, None)) is not None:
            drain.cancel()
        del self._replicas[replica_id]
        task = asyncio.create_task(self._fleet.remove(replica_id))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _use(self, replica_id: str) -> ReplicaUse:
        replica, member = self._replicas[replica_id], self._fleet.members[replica_id]
        return ReplicaUse(
            running=len(member.legs),
            waiting=sum(not leg.heard for leg in member.legs),
            progress=replica.turns,
            connected=replica.link is not None,
        )
