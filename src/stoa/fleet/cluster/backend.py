"""Replicas as Ray actors: named, detached, each on a machine chosen here."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import ray
import structlog

from stoa.fleet.backends.interface import NoCapacity, Status
from stoa.fleet.cluster.actors import ReplicaActor, ReplicaFacts, ReplicaOrder
from stoa.fleet.cluster.machines import Machine, read_machines
from stoa.fleet.cluster.plan import NAMESPACE, Plan, fits
from stoa.fleet.policies.facts import Market, Offer
from stoa.fleet.reports import ClusterUnreachable, Trouble

log = structlog.get_logger("stoa.fleet")
_BROKEN = "creation task"  # in what Ray says of an actor whose constructor has failed
_ANSWER_S = 0.5  # for actors' answers in one look; later ones count in the next
_WATCH_S = 0.1  # between questions to one that starts
_SILENT_S = 2.0
_END_S = 3.0
_SUSPECT_S = 60.0
_OFFER_S = 3600.0  # a zone without machines is still one for so long


@dataclass(eq=False)
class _Actor:
    """`asked` is always under way, so that an actor without a machine is one that does not answer yet."""

    handle: Any
    offer: Offer
    machine: str = ""
    asked: asyncio.Task[ReplicaFacts] | None = None
    asked_s: float = 0.0
    facts: ReplicaFacts | None = None
    trouble: Trouble | None = None

    def silent(self, now_s: float) -> bool:
        """It has answered, and does so no more."""
        return self.facts is not None and self.asked is not None and now_s - self.asked_s > _SILENT_S


class RayBackend:
    """Implements `Backend`. Runs inside the controller's actor."""

    def __init__(self, plan: Plan, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._clock = clock
        self._need = plan.need()
        self._machines: list[Machine] = []
        self._actors: dict[str, _Actor] = {}
        self._places: dict[tuple[str, Market], float] = {}  # zone, market: when there was a machine
        self._prices = {(o.zone, o.market): o.hourly for o in plan.offers}
        self._suspects: dict[str, float] = {}  # machines that did not answer: until when they get nothing
        self._remote = ray.remote(ReplicaActor)
        self._watches: set[asyncio.Task[None]] = set()
        self.changed: Callable[[], None] = lambda: None

    async def offers(self) -> Sequence[Offer]:
        """Of machines that are large enough, of those that were there lately, and those that the plan names. Raises
        NoCapacity."""
        now_s = self._clock()
        for machine in self._machines:
            if fits(self._need, machine.total) and machine.has(self._plan.labels):
                self._places[machine.zone, machine.market] = now_s
        places = {place for place, seen_s in self._places.items() if now_s - seen_s < _OFFER_S}
        places |= self._prices.keys()
        if not places:
            raise NoCapacity(
                f"no node of the cluster is large enough for a replica ({self._plan.need_in_words()})"
            )
        return [self._offer(*place) for place in sorted(places)]

    async def launch(self, replica_id: str, offer: Offer) -> None:
        machine = self._room(offer)
        if machine is None and not self._plan.provision_s:
            raise NoCapacity(self._why_full(offer))
        selector = {"ray.io/node-id": machine.id} if machine else self._labels(offer)
        options = {
            "name": self._plan.replica_prefix + "/".join((offer.zone, offer.market, replica_id)),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
            "num_cpus": self._plan.cpus,
            "num_gpus": self._plan.gpus or None,
            "memory": self._plan.memory_bytes or None,
            "resources": self._plan.resources or None,
            "label_selector": selector | self._plan.labels,
        }
        order = ReplicaOrder(
            id=replica_id,
            engine=self._plan.engine,
            factory=self._plan.factory,
            token=secrets.token_urlsafe(32),
            zone=offer.zone,
            market=offer.market,
            hourly=offer.hourly,
            startup_s=offer.startup_s,
            notice_s=self._plan.notice_s,
            metadata=self._plan.metadata,
        )
        encoded = msgspec.msgpack.encode(order)
        handle = await self._call(lambda: self._remote.options(**options).remote(encoded))
        actor = self._actors[replica_id] = _Actor(handle, offer, machine.id if machine else "")
        watch = asyncio.create_task(self._watch_start(actor))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def stop(self, replica_id: str) -> None:
        actor = self._actors.get(replica_id)
        if actor is None:
            return
        if actor.silent(self._clock()):  # it would not hear; and its machine may be gone before Ray knows
            self._suspects[actor.machine] = self._clock() + _SUSPECT_S
        elif actor.facts is not None:
            try:
                async with asyncio.timeout(_END_S):
                    await actor.handle.end.remote()
            except (TimeoutError, ray.exceptions.RayError):
                pass
        await self._call(lambda: ray.kill(actor.handle, no_restart=True))
        del self._actors[replica_id]
        if actor.asked is not None:
            actor.asked.cancel()

    async def look(self) -> Sequence[Status]:
        names, self._machines = await self._call(self._survey)
        for name in names:
            zone, market, replica_id = name.removeprefix(self._plan.replica_prefix).rsplit("/", 2)
            if replica_id not in self._actors:
                await self._adopt(
                    name, replica_id, self._offer(zone, "spot" if market == "spot" else "on_demand")
                )
        await self._ask()
        for replica_id in [i for i, a in self._actors.items() if a.facts is not None and a.facts.gone]:
            await self.stop(replica_id)  # an actor without its engine is of no use
        return [self._status(replica_id, actor) for replica_id, actor in self._actors.items()]

    async def close(self) -> None:
        """Actors live on."""

    # -- inside

    def _offer(self, zone: str, market: Market) -> Offer:
        plan = self._plan
        default = plan.spot_hourly if market == "spot" else plan.on_demand_hourly
        hourly = self._prices.get((zone, market), default)
        return Offer(zone, market, hourly, plan.provision_s + plan.profile.load_s)

    def _labels(self, offer: Offer) -> dict[str, str]:
        """As Ray's autoscaler knows node groups."""
        market = "spot" if offer.market == "spot" else "on-demand"
        return {"ray.io/availability-zone": offer.zone, "ray.io/market-type": market}

    def _room(self, offer: Offer) -> Machine | None:
        """The machine there with the fewest of ours, then with the most room."""
        ours = Counter(actor.machine for actor in self._actors.values())
        there = [
            m
            for m in self._machines
            if (m.zone, m.market) == (offer.zone, offer.market)
            and m.ends_in_s is None
            and self._clock() > self._suspects.get(m.id, 0.0)
            and m.has(self._plan.labels)
            and ours[m.id] < fits(self._need, m.total)
            and fits(self._need, m.free)
        ]
        return min(there, key=lambda m: (ours[m.id], -fits(self._need, m.free), m.id), default=None)

    def _why_full(self, offer: Offer) -> str:
        if not any((m.zone, m.market) == (offer.zone, offer.market) for m in self._machines):
            return "no node of the cluster is there"
        return f"no node there is free for a replica ({self._plan.need_in_words()})"

    def _survey(self) -> tuple[list[str], list[Machine]]:
        named = ray.util.list_named_actors(all_namespaces=True)
        names = [a["name"] for a in named if a["namespace"] == NAMESPACE]
        return [n for n in names if n.startswith(self._plan.replica_prefix)], read_machines()

    async def _adopt(self, name: str, replica_id: str, offer: Offer) -> None:
        try:
            handle = await self._call(lambda: ray.get_actor(name, namespace=NAMESPACE))
        except ValueError:  # it has just ended
            return
        self._actors[replica_id] = _Actor(handle, offer)

    async def _watch_start(self, actor: _Actor) -> None:
        """So that a replica is known to be ready when it is, and not a look later."""
        with contextlib.suppress(ray.exceptions.RayError):
            while (await _facts(actor.handle)).phase == "starting":  # noqa: ASYNC110
                await asyncio.sleep(_WATCH_S)
        self.changed()

    async def _ask(self) -> None:
        for actor in self._actors.values():
            if actor.asked is None and actor.trouble is None:
                actor.asked = asyncio.create_task(_facts(actor.handle))
                actor.asked_s = self._clock()
        asked = [actor.asked for actor in self._actors.values() if actor.asked is not None]
        if asked:
            await asyncio.wait(asked, timeout=_ANSWER_S)
        for replica_id, actor in list(self._actors.items()):
            if actor.asked is not None and actor.asked.done():
                self._take(replica_id, actor, actor.asked)
                actor.asked = None

    def _take(self, replica_id: str, actor: _Actor, asked: asyncio.Task[ReplicaFacts]) -> None:
        error = asked.exception()
        if error is None:
            facts = actor.facts = asked.result()
            actor.machine = facts.node
            actor.offer = Offer(facts.zone, facts.market, facts.hourly, facts.startup_s)
        elif isinstance(error, ray.exceptions.ActorDiedError):
            if _BROKEN in str(error):
                actor.trouble = Trouble("EngineUnavailable", f"the replica's actor did not start: {error}")
            else:
                del self._actors[replica_id]
        else:
            log.info("an actor does not answer", replica=replica_id, error=repr(error))

    def _status(self, replica_id: str, actor: _Actor) -> Status:
        facts = actor.facts
        if actor.trouble is not None:
            return Status(replica_id, actor.offer, "failed", trouble=actor.trouble)
        if facts is None:
            return Status(replica_id, actor.offer, "pending")
        announced = [facts.ends_in_s, *(m.ends_in_s for m in self._machines if m.id == facts.node)]
        ends = [ends_in_s for ends_in_s in announced if ends_in_s is not None]
        return Status(
            replica_id, actor.offer, facts.phase, facts.address, facts.token, facts.node[:12],
            min(ends, default=None), facts.trouble, silent=actor.silent(self._clock()),
        )  # fmt: skip

    async def _call(self, ask: Callable[[], Any]) -> Any:
        """What waits for the head is done on a thread."""
        try:
            return await asyncio.to_thread(ask)
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterUnreachable(f"Ray does not answer: {error}") from None


async def _facts(handle: Any) -> ReplicaFacts:
    facts: ReplicaFacts = msgspec.msgpack.decode(await handle.look.remote(), type=ReplicaFacts)
    return facts
