"""Work that goes on after the request which began it acts for the key that asked: with its limits, budget and scopes as
they are by then, and only as long as the key is good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from stoa.errors import Unauthorized
from stoa.storage.carrying import carried_through
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.authority import STATIC_KEY_ID
from stoa.tenancy.facts import KeyFacts, read_key, read_project
from stoa.tenancy.principal import Principal

_MOST_KNOWN = 1_000
_Name = tuple[str, str | None]  # project and key


class Delegates:
    """What was found is remembered for `ttl_s`. `clock`: Unix time."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float] = time.time, ttl_s: float = 5.0
    ) -> None:
        self._database, self._clock, self._ttl_s = database, clock, ttl_s
        self._known: dict[_Name, tuple[KeyFacts | None, float]] = {}
        self._reading: dict[_Name, asyncio.Task[KeyFacts | None]] = {}

    async def principal(self, project_id: str, key_id: str | None) -> Principal:
        """`key_id` None: who asked needed no key. Raises Unauthorized, DatabaseUnavailable."""
        facts = await self._facts(project_id, key_id)
        if facts is None or facts.principal.project_id != project_id:
            raise Unauthorized("the API key that asked for this was revoked, or its project archived")
        if facts.good_until is not None and facts.good_until <= self._clock():
            raise Unauthorized("the API key that asked for this has expired")
        return facts.principal

    async def _facts(self, project_id: str, key_id: str | None) -> KeyFacts | None:
        name, now = (project_id, key_id), self._clock()
        facts, read_at = self._known.get(name, (None, float("-inf")))
        if 0 <= now - read_at < self._ttl_s:
            return facts
        if name not in self._reading:
            self._reading[name] = asyncio.ensure_future(self._learn(name, now))
        return await carried_through(self._reading[name])

    async def _learn(self, name: _Name, now: float) -> KeyFacts | None:
        """One at a time for a name, however many wait for it."""
        try:
            facts = await self._read(*name)
        finally:
            del self._reading[name]
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[name] = facts, now
        return facts

    async def _read(self, project_id: str, key_id: str | None) -> KeyFacts | None:
        async with self._database.read(EVERY_PROJECT) as session:
            if key_id is None or key_id == STATIC_KEY_ID:
                return _unlimited(await read_project(session, project_id), key_id)
            return await read_key(session, key_id)


def _unlimited(facts: KeyFacts | None, key_id: str | None) -> KeyFacts | None:
    """The project itself, with all that a key may do in it."""
    if facts is None:
        return None
    return replace(facts, principal=replace(facts.principal, scopes=frozenset({"all"}), key_id=key_id))
