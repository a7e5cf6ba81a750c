"""Many replicas behind one: what the server sends requests to."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import msgspec
import structlog

from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.errors import EngineUnavailable, InvalidRequest, NoAllowedReplica, QueueFull, StoaError
from stoa.fleet.books import Books, NoBooks
from stoa.fleet.journey import Journey
from stoa.fleet.members import Member, together
from stoa.fleet.placement import Placement
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.router import Ask, Costs, Place, ReplicaLoad, View, homes, prefix_chain, route
from stoa.fleet.policies.steering import Steering
from stoa.fleet.replica import Replica
from stoa.fleet.tally import Tally
from stoa.fleet.visits import Visits

log = structlog.get_logger("stoa.fleet")
_POLL_S = 0.05
_STATS_S = 2.0


class Fleet:
    """Requests are held while no replica takes any; they go on elsewhere when theirs goes away."""

    def __init__(
        self,
        *,
        books: Books | None = None,
        max_queue: int = 1024,
        hold_s: float = 600.0,
        again_s: float = 30.0,
        ttft_s: float = 2.0,
        costs: Costs | None = None,
        max_model_len: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`hold_s`: how long a request waits for a replica; `again_s`: for another one, before it goes to a remote that has
        refused it; `ttft_s`: the target for first tokens; `max_model_len`: what to assume until a replica has told; `now`:
        Unix time, for a plan's periods."""
        self._books: Books = books or NoBooks()
        self.max_queue = max_queue
        self.hold_s, self.again_s = hold_s, again_s
        self.visits = Visits(ttft_s, time.monotonic)
        self._placement = Placement(time.monotonic)
        self.members: dict[str, Member] = {}
        self.holds = False  # replicas come when they are wanted: none need be there
        self.hopeless: StoaError | None = None  # why none can start, for operators
        self.refusals = ""  # why machines for replicas have not come lately
        self.starting = 0  # replicas on their way
        self.held = 0  # requests that wait for one
        self.on_held: Callable[[], None] = lambda: None  # told when another one waits
        self._max_model_len = max_model_len
        self._view = View(costs)
        self._now = now
        self._steering: Steering | None = None  # where a plan lets requests go
        self._rng = random.Random(secrets.randbits(64))
        self._journeys: dict[str, Journey] = {}
        self._changed = asyncio.Event()
        self._proven = False  # an engine of ours has been ready
        self._stopping = False
        self._hurried = False
        self._ended: collections.deque[float] = collections.deque(maxlen=64)  # when requests ended lately

    def keep_books(self, books: Books) -> None:
        """From now on `books` is told; of engines that are up already, that they have started."""
        self._books = books
        for member in self.members.values():
            member.replica.keep_books(books)

    # -- replicas

    def add(self, replica: Replica, *, slots: int = 64, handicap_s: float = 0.0) -> None:
        """It gets requests while it is ready."""
        replica.changed = self.changed
        replica.keep_books(self._books)
        load = ReplicaLoad(replica.id, slots=slots, taking=replica.ready, handicap_s=handicap_s)
        if self._steering is not None:
            self._steering.add(replica.id, replica.node.zone, ours=replica.ours)
        self.members[replica.id] = Member(replica, load, self._view)
        self._view.add(load)
        self.changed()

    def changed(self) -> None:
        """Some replica has become ready, or is not any more."""
        staying = any(m.replica.ready and not m.draining for m in self.members.values())
        self._proven = self._proven or any(m.replica.ours and m.replica.ready for m in self.members.values())
        for member in self.members.values():  # one that drains is better than none
            ready = member.replica.ready and not member.leaving
            member.load.taking = ready and not (member.draining and staying)
            if not member.replica.ready:
                self._view.adapters.forget(member.load.id)
                self._view.prefixes.forget(member.load.id)
        known = [
            (m.replica.ours, m.replica.max_model_len)
            for m in self.members.values()
            if m.replica.max_model_len
        ]
        ours = [length for ours, length in known if ours]  # others say themselves what is too long for them
        self._max_model_len = min(ours or [length for _, length in known], default=self._max_model_len)
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def drain(self, replica_id: str, grace_s: float) -> None:
        """Gives it nothing new, and moves what runs there elsewhere. Returns when nothing is left there, after `grace_s` at
        the latest."""
        member = self.members[replica_id]
        member.draining = True
        self.changed()
        deadline_s = time.monotonic() + grace_s
        while member.legs and time.monotonic() < deadline_s:
            for journey in {leg.journey for leg in member.legs}:
                if journey.speaker in member.legs and journey.shadow is None:
                    chosen = self._choose(journey.ask)
                    if chosen is None:
                        break
                    if chosen[0].draining:  # there is no other
                        chosen[1].leave()
                        break
                    journey.move(*chosen)
            await asyncio.sleep(_POLL_S)

    async def remove(self, replica_id: str) -> None:
        """It ends; what still runs there goes on elsewhere from what has been said."""
        member = self.members[replica_id]
        member.draining = member.leaving = True
        self.changed()
        for leg in list(member.legs):
            leg.abandon()
        await member.replica.stop()
        del self.members[replica_id]
        self._view.remove(replica_id)
        if self._steering is not None:
            self._steering.remove(replica_id)

    def follow(self, plan: ModelPlan) -> None:
        """From now on requests go where the plan lets them. Those that run elsewhere go on where they may, or are held."""
        steering = self._steering = Steering(plan)
        for member in self.members.values():
            steering.add(member.load.id, member.replica.node.zone, ours=member.replica.ours)
        for replica_id, member in self.members.items():
            for leg in list(member.legs):
                if not steering.may(leg.journey.request.project, replica_id):
                    leg.abandon()
            for adapter in self._view.adapters.held(replica_id):
                if not steering.may_hold(adapter, replica_id):
                    self._view.adapters.drop(replica_id, adapter)
                    member.replica.forget(adapter)
        self.changed()

    # -- what the server sees

    @property
    def ready(self) -> bool:
        if self._stopping or self.hopeless is not None:
            return False
        return self.holds or any(m.load.taking for m in self.members.values())

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def restarts(self) -> int:
        return sum(m.replica.restarts for m in self.members.values())

    @property
    def kernels(self) -> str:
        """What replicas run on; several if they differ, and then a request that moves may get other tokens."""
        return ", ".join(sorted({m.replica.kernels for m in self.members.values()} - {""}))

    @property
    def notice(self) -> str:
        """What a person should know, or ""."""
        return "; ".join(sorted({m.replica.notice for m in self.members.values()} - {""}))

    def states(self) -> dict[str, int]:
        """How many replicas are starting, ready, draining or lost (not connected), and requests held for want of one."""
        members = self.members.values()
        draining = sum(m.draining for m in members)
        ready = sum(m.replica.ready and not m.draining for m in members)
        return {
            "starting": self.starting,
            "ready": ready,
            "draining": draining,
            "lost": len(members) - ready - draining,
            "held": self.held,
        }

    @property
    def in_flight(self) -> int:
        return len(self._journeys)

    def confined(self) -> dict[str, int]:
        """Requests in flight that a plan does not let be served everywhere, by the places where it does."""
        if self._steering is None:
            return {}
        keys = map(self._steering.confined, [j.request.project for j in self._journeys.values()])
        return dict(collections.Counter(key for key in keys if key is not None))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenEvent]]:
        """Events of the request until each of its choices has ended. Closing the generator cancels it.

        Raises QueueFull, and EngineUnavailable if there is no replica for it, or it ends one after the other.
        """
        self._admit(request)
        self._placement.asked(request.adapter)
        if request.params.seed is None:  # so that it can go on elsewhere
            seeded = msgspec.structs.replace(request.params, seed=secrets.randbits(63))
            request = msgspec.structs.replace(request, params=seeded)
        ask = self._ask(request)
        if self._steering is not None:
            self._steering.asked(ask)
        journey = Journey(request, ask, self, Tally(request, self._books), self.visits)
        self._journeys[request.id] = journey
        try:
            while events := await journey.next_events():
                yield events
        finally:
            journey.close()
            del self._journeys[request.id]
            self._ended.append(time.monotonic())

    async def stats(self) -> EngineStats:
        """All replicas together; those that do not answer at once are left out. Raises EngineUnavailable if there are
        none."""
        answers = await asyncio.gather(*map(_stats_of, self.members.values()))
        found = [stats for stats in answers if stats is not None]
        if not found and not self.holds:
            raise EngineUnavailable("the engine is not up")
        return together(found) if found else EngineStats()

    async def learn_residency(self) -> None:
        """Asks replicas which adapters they hold, also those that other gateways have sent there."""
        members = [m for m in self.members.values() if m.replica.ours]
        for member, stats in zip(members, await asyncio.gather(*map(_stats_of, members)), strict=True):
            if stats is not None and member.load.id in self.members:
                coming = [leg.journey.ask.adapter for leg in member.legs]
                self._view.adapters.replace(member.load.id, [*stats.held_adapters, *filter(None, coming)])
                self._placement.seen(member.load.id, stats)

    def place_adapters(self) -> None:
        """Has replicas read adapters that many ask for and too few hold."""
        takers = {m.load.id: m for m in self.members.values() if m.load.taking and not m.draining}
        ours = {replica_id for replica_id, member in takers.items() if member.replica.ours}
        for replica_id, ref in self._placement.turn(ours, self._view.adapters.holders, self._may_hold):
            log.debug("reads an adapter ahead of need", replica=replica_id, adapter=ref.id)
            takers[replica_id].replica.warm(ref)

    async def warm(self, ref: AdapterRef) -> None:
        """A new adapter is read where its first request will go; other services are told of it at once."""
        allowed = [m for m in self.members.values() if self._may_hold(ref.id, m.load.id)]
        first = homes(ref.id, [m.load for m in allowed if m.replica.ours])
        for member in allowed:
            if not member.replica.ours or member.load.id in first:
                member.replica.warm(ref)

    def _may_hold(self, adapter: str, replica_id: str) -> bool:
        return self._steering is None or self._steering.may_hold(adapter, replica_id)

    async def forget(self, adapter_id: str) -> None:
        self._placement.forget(adapter_id)
        for member in self.members.values():
            member.replica.forget(adapter_id)

    async def stop(self, drain_s: float = 30.0) -> None:
        """Refuses new requests, lets running ones finish for up to `drain_s`, then ends all replicas."""
        self._stopping = True
        self.changed()
        deadline_s = time.monotonic() + drain_s
        while self._journeys and not self._hurried and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for journey in self._journeys.values():
            journey.abort(EngineUnavailable("the service is shutting down; send it again"))
        await asyncio.gather(*(m.replica.stop() for m in self.members.values()))

    def hurry(self) -> None:
        """A `stop` under way waits no longer."""
        self._hurried = True

    # -- dispatching

    async def place(self, ask: Ask, refused: frozenset[str] = frozenset()) -> tuple[Member, Place]:
        """`refused`: remotes that have given it up. They are asked again where nobody else takes it for `again_s`."""
        others = replace(ask, not_at=ask.not_at | refused) if refused else ask
        if (chosen := self._choose(others)) is not None:
            return chosen
        if self._never_allowed(ask):
            raise self._none_came(ask)
        self.held += 1
        self.on_held()
        try:
            return await self._wait_for_place(ask, others)
        finally:
            self.held -= 1

    async def _wait_for_place(self, ask: Ask, others: Ask) -> tuple[Member, Place]:
        """By `others`, for `again_s` or if there are none; then by `ask`."""
        deadline_s = time.monotonic() + self.hold_s
        again_s = time.monotonic() + self.again_s
        while True:
            changed, now_s = self._changed, time.monotonic()
            if now_s >= again_s or not (self.holds or self.members.keys() - others.not_at):
                others = ask
            if (chosen := self._choose(others)) is not None:
                return chosen
            if self._is_hopeless(others):
                raise EngineUnavailable("no replica can be started for this model; try again later")
            if now_s >= deadline_s or self._never_allowed(ask):
                raise self._none_came(ask)
            until_s = deadline_s if others is ask else min(deadline_s, again_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_s - now_s):
                    await changed.wait()

    def _is_hopeless(self, ask: Ask) -> bool:
        """Is it certain that no replica will take it? An engine that refuses to start, where none ever has, will refuse
        again; machines that fail, or a model that was there before, may come back."""
        refused = self.hopeless is not None and not isinstance(self.hopeless, EngineUnavailable)
        comes = self.starting or self._proven or self.members.keys() - ask.not_at
        return refused and not comes

    def _never_allowed(self, ask: Ask) -> bool:
        """Is no replica within the places of its project, and none to come?"""
        if self._steering is None or (places := self._steering.places(ask.project)) is None:
            return False
        return not places or not (self.holds or any(self._steering.may(ask.project, m) for m in self.members))

    def _none_came(self, ask: Ask) -> EngineUnavailable:
        places = self._steering.places(ask.project) if self._steering is not None else None
        if places is None:
            why = f" ({self.refusals})" if self.refusals else ""
            return EngineUnavailable(
                f"no replica has become ready for {self.hold_s:g} s{why}; try again later"
            )
        return NoAllowedReplica(
            f"no replica is ready where this project's requests may be served ({', '.join(sorted(places)) or 'nowhere'}); "
            "try again later"
        )

    def _choose(self, ask: Ask) -> tuple[Member, Place] | None:
        """The one way by which requests come to replicas: first ones, moved, held and failed ones."""
        if self._steering is None:
            index = route(ask, self._view, self._rng)
        else:
            index = self._steering.choose(ask, self._view, self._rng, self._now())
        if index is None:
            return None
        member = self.members[self._view.replicas[index].id]
        return member, self._view.send(index, ask)

    def _ask(self, request: GenerationRequest) -> Ask:
        adapter = request.adapter.id if request.adapter else None
        prefix: list[bytes] = []
        if len(self.members) > 1:
            salt = hashlib.blake2b(f"{request.project}\x1f{adapter}".encode(), digest_size=16).digest()
            prefix = prefix_chain(request.prompt_token_ids, salt)
        service = request.service_class
        return Ask(request.project, adapter, len(request.prompt_token_ids), prefix, service=service)

    def cannot_have(self, request: GenerationRequest) -> frozenset[str]:
        """Replicas that cannot take it. Raises InvalidRequest if that is all of them and no others come."""
        why = {
            m.replica.id: found
            for m in self.members.values()
            if not m.replica.ours and (found := m.replica.unfit(request)) is not None
        }
        if why and len(why) == len(self.members) and not self.holds:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(why.items()))
            raise InvalidRequest(f"no replica can take this request ({reasons})")
        return frozenset(why)

    def _admit(self, request: GenerationRequest) -> None:
        if self._stopping:
            raise EngineUnavailable("the service is shutting down")
        if request.id in self._journeys:
            raise InvalidRequest(f"request id {request.id!r} is in use", param="id")
        if len(self._journeys) >= self.max_queue:
            raise QueueFull(
                f"{len(self._journeys)} requests are in flight, the limit is {self.max_queue}; try again later",
                retry_after_s=self._retry_after_s(),
            )

    def _retry_after_s(self) -> int:
        """When a place should be free, from how fast requests ended lately."""
        if len(self._ended) < 2:
            return 1
        per_request = (time.monotonic() - self._ended[0]) / len(self._ended)
        return max(1, min(60, math.ceil(per_request)))


async def _stats_of(member: Member) -> EngineStats | None:
    """None: it is not up, or does not answer at once."""
    try:
        async with asyncio.timeout(_STATS_S):
            return await member.replica.stats()
    except (EngineUnavailable, TimeoutError):
        return None
