"""The control loop of one base model's fleet: what is seen -> policy -> backend.

    gateways  ── report, about once a second ──▶  Controller  ── look, launch, stop ──▶  Backend
              ◀── FleetState: which replicas ──        │
                                                  Autoscaler (pure)

Nothing here is kept on disk. What exists is what the backend lists, so a controller that starts anew adopts it. A replica
that drains ends once every gateway has moved its requests. Several gateways may report; one that is silent is forgotten.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from stoa.errors import ConfigError
from stoa.fleet.backends.interface import Backend, NoCapacity, Status
from stoa.fleet.clock import SteadyClock
from stoa.fleet.history import History
from stoa.fleet.lives import Gateway, Life, OfferBook, Starts
from stoa.fleet.policies import planned
from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.facts import Autoscaler, Bounds, Decision, Offer, Slo, Snapshot
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.profile import Profile
from stoa.fleet.reports import (
    ClusterUnreachable,
    FleetState,
    GatewayReport,
    PlanNews,
    ReplicaUse,
    Trouble,
)

log = structlog.get_logger("stoa.fleet")
T = TypeVar("T")
_LONGEST_STEP_S = 5.0  # of the clock, between two things that happen


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the controller waits for what."""

    tick_s: float = 1.0
    backend_s: float = 10.0  # for an answer of the backend
    gateway_s: float = 10.0  # without a report, before a gateway is forgotten
    settle_s: float = 15.0  # after the controller's start, for all gateways to report
    orphan_s: float = 600.0  # without any gateway, before everything is given back
    provision_s: float = 300.0  # for a machine
    start_s: float = 900.0  # from having a machine to the first request
    stall_s: float = 60.0  # without progress that any gateway sees
    cut_s: float = 10.0  # without a link from any gateway, when its backend does not reach a replica either
    drain_s: float = 300.0  # for requests to move or end


class Controller:
    """`new_id` names replicas; names are never used again, whoever controls. `now`: Unix time, for a plan's periods."""

    def __init__(
        self,
        *,
        backend: Backend,
        policy: Autoscaler[Any],
        profile: Profile,
        slo: Slo,
        bounds: Bounds,
        clock: Callable[[], float],
        pace: Pace = Pace(),
        new_id: Callable[[], str] = lambda: secrets.token_hex(6),
        history: History | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.backend, self.policy, self.profile = backend, policy, profile
        self.slo, self.bounds, self.pace = slo, bounds, pace
        self.epoch = new_id()
        self.reason = ""  # of the last decision, for people
        self.lives: dict[str, Life] = {}
        self.gateways: dict[str, Gateway] = {}
        self._clock = SteadyClock(clock, _LONGEST_STEP_S)
        self._now = now
        self._plan: ModelPlan | None = None
        self._unplanned = ""  # why the latest plan is not followed
        self._new_id = new_id
        self._history = history or History()
        self._offers = OfferBook()
        self._nowhere: list[str] = []  # why there is no offer at all
        self._starts = Starts()
        self._memory = policy.initial()
        self._version = 1
        self._known = False
        self._ended: set[str] = set()  # told to stop, and perhaps still listed
        self._began_s = self._heard_s = self._clock.now()
        self._wake = asyncio.Event()
        backend.changed = self._wake.set
        self._reachable = True

    # -- gateways

    def report(self, report: GatewayReport) -> FleetState:
        """What the gateway tells, and what it should know. The same report twice changes nothing."""
        now_s = self._heard_s = self._clock.now()
        before = self.gateways.get(report.gateway)
        self._history.add(now_s, before.report if before else None, report)
        self.gateways[report.gateway] = Gateway(report, now_s)
        for replica_id, use in report.replicas.items():
            if (life := self.lives.get(replica_id)) is not None:
                life.hear(report.gateway, use, now_s)
        if report.plan is not None:
            self._follow(report.plan)
        if report.held and not self.lives:
            self._wake.set()  # somebody waits for the first replica: now, not at the next tick
        return self.state()

    def state(self) -> FleetState:
        now_s = self._clock.now()
        serving = any(life.phase in ("ready", "draining") for life in self.lives.values())
        return FleetState(
            epoch=self.epoch,
            version=self._version,
            known=self._known,
            replicas=[life.place(now_s) for life in self.lives.values()],
            trouble=None if serving else self._starts.hopeless,
            refusals=[*self._nowhere, *self._offers.refusals(now_s), *filter(None, [self._unplanned])],
            plan_s=self._plan.read_s if self._plan is not None else 0.0,
        )

    def _follow(self, news: PlanNews) -> None:
        """The latest plan of all gateways."""
        if self._plan is not None and news.read_s <= self._plan.read_s:
            return
        try:
            self._plan = ModelPlan.of(news.file, news.model, machine=news.machine, read_s=news.read_s)
        except ConfigError as error:  # a time zone, say, that this machine does not know
            self._unplanned = f"the controller cannot follow the plan: {error.message}"
            log.error("the plan is refused; the old one stays", error=error.message)
            return
        self._unplanned = ""
        if isinstance(self.policy, Elastic):
            log.info("the fleet follows a plan", made=news.file.made)
        else:
            log.warning("the fleet's policy takes no plan", policy=type(self.policy).__name__)

    # -- the loop

    async def run(self) -> None:
        """Ticks until cancelled. A tick that fails is logged, and the next one comes."""
        while True:
            try:
                await self.tick()
            except Exception:
                log.exception("the fleet's controller stumbled")
            try:
                async with asyncio.timeout(self.pace.tick_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def tick(self) -> None:
        try:
            statuses = await self._answer(self.backend.look())
            offers = await self._find_offers()
        except ClusterUnreachable as error:
            if self._reachable:
                log.error("replicas cannot be seen", error=error.message)
            self._reachable = False
            return  # what is known stays; nothing is decided blindly
        self._reachable = True
        await self._observe(statuses)
        await self._end_what_is_over()
        decision = self._decide(offers)
        await self._apply(decision)

    async def _find_offers(self) -> list[Offer]:
        self._nowhere = []
        try:
            return list(await self._answer(self.backend.offers()))
        except NoCapacity as error:
            self._nowhere = [error.message]
            return []

    def _second(self) -> float:
        """What the loop goes by: whole seconds, with which the bins of demand end."""
        return float(math.floor(self._clock.now()))

    @property
    def deserted(self) -> bool:
        """No gateway has asked for long, and nothing is left: the controller may end."""
        return self._known and not self.lives and self._orphaned(self._second())

    async def close(self, *, stop_all: bool = False) -> None:
        if stop_all:
            await asyncio.gather(*(self.backend.stop(i) for i in self.lives), return_exceptions=True)
        await self.backend.close()

    async def _answer(self, asked: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.pace.backend_s):
                return await asked
        except TimeoutError:
            raise ClusterUnreachable(f"no answer within {self.pace.backend_s:g} s") from None

    # -- what is seen

    async def _observe(self, statuses: Sequence[Status]) -> None:
        now_s = self._second()
        listed = {status.id: status for status in statuses}
        self._ended &= listed.keys()
        for replica_id in list(self._ended):
            await self._stop(replica_id)
        for life in [life for life in self.lives.values() if life.id not in listed]:
            self._vanished(life, now_s)
            self._remove(life)
        for status in statuses:
            if status.id in self._ended:
                continue
            if status.id not in self.lives:
                log.info("adopted a replica", replica=status.id, phase=status.phase)
                self._add(Life(status.id, status.offer, "pending", now_s, adopted=True))
            await self._see(self.lives[status.id], status, now_s)
        if not self._known:
            self._known = True
            self._version += 1

    async def _see(self, life: Life, status: Status, now_s: float) -> None:
        if status.phase == "failed":
            await self._failed(life, status.trouble or Trouble("EngineUnavailable", "it failed"), now_s)
            return
        if life.phase == "pending" and status.phase != "pending":
            self._offers.launched(life.offer, now_s)
            life.enter("starting", now_s)
        if life.phase == "starting" and status.phase == "ready":
            life.address, life.token, life.node = status.address, status.token, status.node
            life.enter("ready", now_s)
            self._starts.succeeded()
            self._version += 1
            log.info("a replica is ready", replica=life.id, zone=life.offer.zone, market=life.offer.market)
        if status.ends_in_s is not None and life.ends_s == math.inf:
            life.ends_s = now_s + status.ends_in_s
            self._offers.preempted(life.offer, now_s)
            log.warning("a replica's machine ends", replica=life.id, seconds=status.ends_in_s)
            await self._drain(life, now_s)
        life.silent = status.silent
        await self._lose_patience(life, now_s)

    async def _lose_patience(self, life: Life, now_s: float) -> None:
        waited_s = now_s - life.since_s
        if life.phase == "pending" and waited_s > self.pace.provision_s:
            log.warning("no machine came", replica=life.id, zone=life.offer.zone, market=life.offer.market)
            self._offers.refused(life.offer, now_s, f"no machine came within {self.pace.provision_s:g} s")
            await self._end(life)
        elif life.phase == "starting" and waited_s > self.pace.start_s:
            message = f"the engine did not start within {self.pace.start_s:g} s"
            await self._failed(life, Trouble("EngineUnavailable", message), now_s)

    def _vanished(self, life: Life, now_s: float) -> None:
        """It ended, and we have not told it to."""
        if life.phase == "pending":
            self._offers.refused(life.offer, now_s, "it was gone before it had a machine")
            return
        log.warning("a replica has gone", replica=life.id, phase=life.phase, zone=life.offer.zone)
        if life.offer.market == "spot" and life.ends_s == math.inf:
            self._offers.preempted(life.offer, now_s)
        elif life.on_its_way and life.ends_s == math.inf:
            self._starts.fail(now_s, Trouble("EngineUnavailable", "the engine ended while it started"))

    async def _failed(self, life: Life, trouble: Trouble, now_s: float) -> None:
        log.error("a replica failed", replica=life.id, phase=life.phase, error=trouble.message)
        if life.on_its_way:
            self._starts.fail(now_s, trouble)
            self._offers.refused(life.offer, now_s, "a replica did not start")  # `trouble` is for operators
        await self._end(life)

    # -- what is over

    async def _end_what_is_over(self) -> None:
        now_s = self._second()
        for name, gateway in list(self.gateways.items()):
            if now_s - gateway.heard_s > self.pace.gateway_s:
                log.warning("a gateway is silent; it is forgotten", gateway=name)
                del self.gateways[name]
                for life in self.lives.values():
                    life.progress.pop(name, None)
        settled = now_s - self._began_s >= self.pace.settle_s
        for life in list(self.lives.values()):
            if self._hangs(life, now_s):
                message = f"the engine has made no progress for {self.pace.stall_s:g} s"
                await self._failed(life, Trouble("EngineUnavailable", message), now_s)
            elif self._cut_off(life, now_s):
                self._vanished(life, now_s)
                await self._end(life)
            elif life.phase == "draining":
                heard = settled or not life.adopted
                left = heard and all(g.has_left(life, self.epoch) for g in self.gateways.values())
                if left or now_s > life.drain_until_s:
                    await self._end(life)

    def _hangs(self, life: Life, now_s: float) -> bool:
        """Gateways know it, and none sees it work. One that is idle works too."""
        return self._used(life) and now_s - life.moved_s > self.pace.stall_s

    def _cut_off(self, life: Life, now_s: float) -> bool:
        """Nobody reaches it. A backend may take a minute to see that a machine is gone."""
        return life.silent and self._used(life) and now_s - life.reached_s > self.pace.cut_s

    def _used(self, life: Life) -> bool:
        """Gateways have tried."""
        serving = life.phase in ("ready", "draining")
        return serving and any(life.id in g.report.replicas for g in self.gateways.values())

    def _orphaned(self, now_s: float) -> bool:
        return not self.gateways and now_s - self._heard_s > self.pace.orphan_s

    # -- decide, act

    def _decide(self, offers: list[Offer]) -> Decision:
        now_s = self._second()
        reports = [gateway.report for gateway in self.gateways.values()]
        self._history.seen(now_s, sum(r.in_flight for r in reports))
        if self._orphaned(now_s):
            return Decision(drain=list(self.lives), reason="no gateway is left")
        snapshot = Snapshot(
            now_s=now_s,
            replicas=[life.seen(_uses(reports, life.id)) for life in self.lives.values()],
            demand=self._history.demand(
                now_s,
                held=sum(r.held for r in reports),
                oldest_wait_s=max((r.oldest_wait_s for r in reports), default=0.0),
                confined=sum((Counter(r.confined) for r in reports), Counter()),
            ),
            offers=self._offers.list(offers),
            profile=self.profile,
            slo=self.slo,
            bounds=self.bounds,
        )
        decision = self._ask_policy(snapshot)
        if now_s - self._began_s < max(self.pace.settle_s, self.bounds.idle_s):
            # What was asked of adopted replicas is not known.
            drain = [i for i in decision.drain if (life := self.lives.get(i)) is None or not life.adopted]
            decision = replace(decision, drain=drain)
        if (decision.launch or decision.drain) and decision.reason != self.reason:
            log.info("the fleet changes", reason=decision.reason)
        self.reason = decision.reason
        return decision

    def _ask_policy(self, seen: Snapshot) -> Decision:
        if self._plan is None or not isinstance(self.policy, Elastic):
            decision, self._memory = self.policy.decide(seen, self._memory)
            return decision
        if not isinstance(self._memory, planned.Memory):  # the first plan: what was learned until now stays
            self._memory = planned.Memory(self._memory)
        policy = planned.Planned(self._plan, self._now() - seen.now_s, self.policy)
        decision, self._memory = policy.decide(seen, self._memory)
        return decision

    async def _apply(self, decision: Decision) -> None:
        now_s = self._second()
        for replica_id in decision.drain:
            if (life := self.lives.get(replica_id)) is not None:
                await self._drain(life, now_s)
        wanted = [launch.offer for launch in decision.launch for _ in range(launch.count)]
        lives = [life for life in self.lives.values() if life.phase != "draining"]
        room = min(
            self._starts.may_launch(now_s, sum(life.on_its_way for life in lives)),
            self.bounds.max_replicas - len(lives),
        )
        await asyncio.gather(
            *(self._launch(offer) for offer in wanted[: int(max(0, min(room, len(wanted))))])
        )

    async def _launch(self, offer: Offer) -> None:
        life = self._add(Life(self._new_id(), offer, "pending", self._second()))
        try:
            await self._answer(self.backend.launch(life.id, offer))
        except NoCapacity as error:
            log.info("refused", zone=offer.zone, market=offer.market, reason=error.message)
            self._offers.refused(offer, self._second(), error.message)
            self._remove(life)
        except ClusterUnreachable:
            pass  # the next look tells whether it exists

    async def _drain(self, life: Life, now_s: float) -> None:
        if life.on_its_way:
            await self._end(life)
        elif life.phase == "ready":
            self._version += 1
            life.enter("draining", now_s)
            life.drain_version = self._version
            life.drain_until_s = min(now_s + self.pace.drain_s, max(life.ends_s, now_s + 1.0))

    async def _end(self, life: Life) -> None:
        self._ended.add(life.id)
        self._remove(life)
        await self._stop(life.id)

    async def _stop(self, replica_id: str) -> None:
        try:
            await self._answer(self.backend.stop(replica_id))
        except ClusterUnreachable as error:
            log.warning("a replica could not be stopped yet", replica=replica_id, error=error.message)

    def _add(self, life: Life) -> Life:
        self.lives[life.id] = life
        self._version += 1
        return life

    def _remove(self, life: Life) -> None:
        del self.lives[life.id]
        self._version += 1


def _uses(reports: Sequence[GatewayReport], replica_id: str) -> list[ReplicaUse]:
    return [use for r in reports if (use := r.replicas.get(replica_id)) is not None]
