"""One request's way over replicas: its client sees a single stream, whatever happens to them.

    speaker   the leg whose events go to the client
    shadow    in a planned move, a leg elsewhere that goes on from what had been said when it began

    said      [ ───────────────────────────── | ]
    speaker   [ so far when it began | heard  | ]
    shadow    [ so far when it began ────|ahead| ]

All replicas of one kind continue with the same tokens, so nothing but the moment of a token tells which leg it came
from. Once a shadow has its first token, its prompt is computed and what was said meanwhile is missing: if that is
little, the shadow speaks, and the old leg is cancelled; else another shadow begins there from what has been said by
now, which finds nearly all of it in the prefix cache.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

import msgspec

from stoa.engine.request import GenerationRequest, TokenEvent
from stoa.engine.usage import RequestUsage
from stoa.errors import EngineUnavailable, StoaError
from stoa.fleet.members import Member
from stoa.fleet.policies.router import Ask, Place
from stoa.fleet.tally import Tally
from stoa.fleet.visits import Visit, Visits

# Replicas lost one after the other without a token: of ours, the request may be what ends them.
_MOST_LOSSES, _MOST_REFUSALS = 3, 12
_CLOSE_TOKENS = 3  # a shadow so close behind speaks
_MOST_SHADOWS = 4  # of one move, before it is good enough


class Dispatcher(Protocol):
    """Finds replicas for journeys. Implemented by `fleet.Fleet`."""

    def cannot_have(self, request: GenerationRequest) -> frozenset[str]:
        """Ids of replicas. Raises InvalidRequest if none can take it and none will come."""
        ...

    async def place(self, ask: Ask, refused: frozenset[str]) -> tuple[Member, Place]:
        """Waits while no replica takes requests; those that have `refused` this one are the last resort. Raises
        EngineUnavailable if none will."""
        ...


class Leg:
    """The request at one replica. Implements `replica.Receiver`."""

    def __init__(
        self, journey: Journey, member: Member, place: Place, request: GenerationRequest, begun: list[int]
    ) -> None:
        self.journey, self.member, self.place, self.request = journey, member, place, request
        self.reached = begun  # tokens of each choice, those from before included
        self.heard = 0  # tokens handed on
        self.ahead: list[TokenEvent] = []  # of a shadow: what it has said so far
        self.over = False  # its events are of no interest any more
        member.legs.add(self)

    def events(self, events: list[TokenEvent]) -> None:
        if not self.heard:
            self.place.answered()
        self.heard += sum(len(event.token_ids) for event in events)
        if not self.over:
            self.journey.inbox.put_nowait((self, events))

    def used(self, usage: RequestUsage, cost_nanos: int) -> None:
        self._end()
        self.journey.tally.used(usage, cost_nanos)

    def lost(self) -> None:
        self._end()
        self.journey.tally.lost(self.heard)
        if not self.over:
            self.journey.inbox.put_nowait((self, None))

    def cancel(self) -> None:
        self.over = True
        self.member.replica.cancel(self.request.id)

    def abandon(self) -> None:
        """Its replica is about to be taken away."""
        if not self.over:
            self.cancel()
            self.journey.inbox.put_nowait((self, None))

    def _end(self) -> None:
        self.place.leave()
        self.member.legs.discard(self)


class Journey:
    """From arrival to the last event; close it in `finally`. `ask`: what the router wants to know."""

    def __init__(
        self, request: GenerationRequest, ask: Ask, dispatcher: Dispatcher, tally: Tally, visits: Visits
    ) -> None:
        self.request, self.ask, self.tally = request, ask, tally
        self.inbox: asyncio.Queue[tuple[Leg, list[TokenEvent] | None] | StoaError] = asyncio.Queue()
        self.speaker: Leg | None = None
        self.shadow: Leg | None = None
        self._dispatcher = dispatcher
        self._visit: Visit = visits.arrived(ask.prompt_tokens)
        self._said: list[list[int] | None] = [[] for _ in range(request.n)]  # None: that choice has ended
        self._total = 0
        self._left = request.n
        self._legs = 0
        self._shadows = 0  # of the move under way
        self._losses = {True: 0, False: 0}  # by whether the replica was ours
        self._refused: frozenset[str] = frozenset()  # remotes that have given it up without a token

    async def next_events(self) -> list[TokenEvent]:
        """What comes next; [] after the last event. Raises EngineUnavailable."""
        if not self._legs:
            self.speaker = await self._begin()
        while self._left:
            item = await self.inbox.get()
            if isinstance(item, StoaError):
                raise item
            leg, heard = item
            said = await self._lost(leg) if heard is None else self._hear(leg, heard)
            if said:
                return said
        return []

    def move(self, member: Member, place: Place) -> None:
        """Goes on there as soon as that one has caught up."""
        assert self.speaker is not None
        assert self.shadow is None
        self._shadows = 1
        self.shadow = self._open(member, place, self._next_request())

    def abort(self, error: StoaError) -> None:
        self.inbox.put_nowait(error)

    # -- legs

    async def _begin(self) -> Leg:
        request = self._next_request()
        not_at = self._dispatcher.cannot_have(request)
        if not_at != self.ask.not_at:
            self.ask = replace(self.ask, not_at=not_at)
        return self._open(*await self._dispatcher.place(self.ask, self._refused), request)

    def _next_request(self) -> GenerationRequest:
        """As its next leg gets it."""
        if not self._legs:
            return self.request
        so_far = [None if tokens is None else [*tokens] for tokens in self._said] if self._total else []
        return msgspec.structs.replace(self.request, id=f"{self.request.id}~{self._legs}", so_far=so_far)

    def _open(self, member: Member, place: Place, request: GenerationRequest) -> Leg:
        begun = [len(tokens or ()) for tokens in self._said]
        self._legs += 1
        self.tally.begun()
        request = msgspec.structs.replace(request, waited_s=self._visit.waited_s())
        leg = Leg(self, member, place, request, begun)
        member.replica.open(request, leg)
        return leg

    async def _lost(self, leg: Leg) -> list[TokenEvent]:
        if not leg.heard and not leg.member.replica.ours:
            self._refused |= {leg.member.replica.id}
        if leg is self.shadow:
            self.shadow = None
            self.ask = replace(self.ask, not_at=self.ask.not_at | self._refused)  # no other move goes there
        if leg is not self.speaker:
            return []
        if self.shadow is not None:
            return self._switch(self.shadow)
        self._count_loss(leg)
        self.speaker = None
        self.speaker = await self._begin()
        return []

    def _count_loss(self, leg: Leg) -> None:
        """Raises EngineUnavailable when it is one too many."""
        if leg.heard:
            self._losses = {True: 0, False: 0}
            return
        self._losses[leg.member.replica.ours] += 1
        if self._losses[True] == _MOST_LOSSES:
            raise EngineUnavailable(
                f"the engine stopped while this request was running, {_MOST_LOSSES} times; send it again"
            )
        if self._losses[False] == _MOST_REFUSALS:
            raise EngineUnavailable(f"no remote has answered in {_MOST_REFUSALS} attempts; send it again")

    def _switch(self, shadow: Leg) -> list[TokenEvent]:
        """The shadow speaks."""
        if self.speaker is not None:
            self.speaker.cancel()
        self.speaker, self.shadow = shadow, None
        ahead, shadow.ahead = shadow.ahead, []
        return self._say(shadow, ahead)

    # -- events

    def _hear(self, leg: Leg, events: list[TokenEvent]) -> list[TokenEvent]:
        if leg.over:
            return []
        if leg is self.speaker:
            return self._say(leg, events)
        leg.ahead += events
        if any(event.finish_reason == "error" for event in events):
            leg.cancel()  # let the old one go on
            self.shadow = None
        elif self._behind(leg) <= _CLOSE_TOKENS or self._shadows == _MOST_SHADOWS:
            return self._switch(leg)
        else:
            self._shadows += 1
            leg.cancel()
            self.shadow = self._open(leg.member, leg.member.take(self.ask), self._next_request())
        return []

    def _behind(self, leg: Leg) -> int:
        """Tokens that have been said and that the leg has not reached."""
        reached = list(leg.reached)
        for event in leg.ahead:
            reached[event.index] += len(event.token_ids)
        return max(len(said) - at for said, at in zip(self._said, reached, strict=True) if said is not None)

    def _say(self, leg: Leg, events: list[TokenEvent]) -> list[TokenEvent]:
        """What of it the client has not had."""
        news = []
        for event in events:
            said, start = self._said[event.index], leg.reached[event.index]
            leg.reached[event.index] = start + len(event.token_ids)
            if said is None or (event.token_ids and start < len(said)):
                continue
            said += event.token_ids
            self._total += len(event.token_ids)
            self._visit.said(len(event.token_ids))
            if event.finish_reason is not None:
                self._said[event.index] = None
                self._left = 0 if event.finish_reason == "error" else self._left - 1
            if leg.request is not self.request:
                event = msgspec.structs.replace(event, request_id=self.request.id)
            news.append(event)
        return news

    def close(self) -> None:
        """Cancels what runs."""
        for leg in (self.shadow, self.speaker if self._left else None):
            if leg is not None and not leg.over:
                leg.cancel()
        if self.speaker is not None:
            self.speaker.over = True
        self._visit.left()
        self.tally.close(self._total)
