"""Tells who is asking, from the secret they show, without a question to the database for most of them.

What was found is remembered for `ttl_s`. For as long again it is still served while it is read anew in the
background; after that a request waits for the reading, unless the database is lost: then what is known is good
for `STALE_S` from when it was read. Expiry is looked at each time. Wrong keys are remembered for `WRONG_S`;
what does not look like a key of ours is refused unasked. Questions of many requests go to the database
together, one query at a time, so a flood of wrong keys costs no more than that.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from stoa.errors import DatabaseUnavailable, Unauthorized
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.facts import KeyFacts, any_keys, read_keys, read_project
from stoa.tenancy.principal import ADMIN, DEFAULT_PROJECT, Principal
from stoa.tenancy.secret import hash_secret, is_well_formed
from stoa.tenancy.uses import Uses

STALE_S = 60.0
WRONG_S = 2.0
STATIC_KEY_ID = "key_static"  # how the key of the settings is called in records of use
NOBODY: frozenset[str] = frozenset()  # who shows no key is refused
ANYBODY = frozenset({"all"})  # who shows no key is the default project
ANYBODY_HERE = frozenset({"all", ADMIN})  # on loopback: and administrator

_MOST_KNOWN = 10_000
_MOST_WRONG = 10_000
_MOST_AT_ONCE = 500  # keys in a query
_PATIENCE_S = 2.0  # how long a known key waits for the database
_RETRY_S = 1.0  # how long a lost database is left alone
_DEFAULT = f"project/{DEFAULT_PROJECT}"  # what is remembered of the default project, beside hashes of keys
log = structlog.get_logger()


@dataclass(frozen=True)
class _Known:
    facts: KeyFacts
    read_at: float


class Authority:
    """One per process. Close it at the end."""

    def __init__(
        self,
        database: Database,
        *,
        static_key: str = "",
        open_project: frozenset[str] = NOBODY,
        until_keys: bool = False,
        ttl_s: float = 5.0,
        clock: Callable[[], float] = time.time,
        write_uses_s: float = 2.0,
    ) -> None:
        """`static_key`: of the settings; the default project's, with all scopes and admin. `open_project`: what
        they may do in the default project who show no key: NOBODY, ANYBODY or ANYBODY_HERE; `until_keys`: until
        the first key is made, here or elsewhere. `clock`: Unix seconds."""
        self._database, self._clock, self._ttl_s = database, clock, ttl_s
        self._static = hash_secret(static_key) if static_key else ""
        self._open_scopes, self._until_keys = open_project, until_keys
        self._known: OrderedDict[str, _Known] = (
            OrderedDict()
        )  # by hash of the secret, the longest unused first
        self._wrong: OrderedDict[str, float] = OrderedDict()  # hash → when it was found wrong
        self._asked: dict[str, asyncio.Future[KeyFacts | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._changes = 0  # what was read before a change is not remembered after it
        self._lost_until = float("-inf")
        self._uses = Uses(database, clock=clock, wait_s=write_uses_s)

    async def authenticate(self, secret: str | None) -> Principal:
        """Raises Unauthorized, DatabaseUnavailable if the key is not known here and the database is lost.

        An open service takes what is no key of ours as none: OpenAI's clients cannot but send something.
        """
        if secret and self._static and hmac.compare_digest(hash_secret(secret), self._static):
            return await self._default(frozenset({"all", ADMIN}), STATIC_KEY_ID)
        if self._open_scopes and (not secret or not is_well_formed(secret)):
            found = await self._default(self._open_scopes, None)
            if self._open_scopes:  # no key was made meanwhile
                return replace(found, scopes=self._open_scopes)
        if not secret:
            raise Unauthorized("no API key; send it as Authorization: Bearer KEY")
        if not is_well_formed(secret):
            raise _wrong_key()
        facts = await self._facts(hash_secret(secret))
        if facts.principal.key_id is not None:
            self._uses.note(facts.principal.key_id)
        return facts.principal

    def invalidate(self, changed_id: str) -> None:
        """Forgets all that may have changed with that key, service account, project or organization."""
        self._changes += 1
        self._wrong.clear()
        for name in [n for n, known in self._known.items() if known.facts.is_about(changed_id)]:
            del self._known[name]

    async def close(self) -> None:
        """Writes what is still to be written. Raises nothing."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()
        await self._uses.close()

    async def _default(self, scopes: frozenset[str], key_id: str | None) -> Principal:
        facts = await self._facts(_DEFAULT)
        return replace(facts.principal, scopes=scopes, key_id=key_id)

    async def _facts(self, name: str) -> KeyFacts:
        """`name`: the hash of a secret, or _DEFAULT. Raises Unauthorized, DatabaseUnavailable."""
        now = self._clock()
        known = self._known.get(name)
        if known is None:
            self._check_wrong(name, now)
            facts = await self._ask(name)
            if facts is None:
                raise _wrong_key()
            return self._alive(facts)
        self._known.move_to_end(name)
        self._alive(known.facts)
        age_s = now - known.read_at
        if age_s >= self._ttl_s and (fresh := await self._refresh(name, age_s)) is not known.facts:
            return self._alive(fresh)
        return known.facts

    async def _refresh(self, name: str, age_s: float) -> KeyFacts:
        known = self._known[name]
        if age_s < 2 * self._ttl_s:
            if self._clock() >= self._lost_until:
                self._ask(name).add_done_callback(_retrieve)
            return known.facts
        try:
            async with asyncio.timeout(_PATIENCE_S):
                facts = await self._ask(name)
        except (DatabaseUnavailable, TimeoutError) as error:
            if age_s <= STALE_S:
                return known.facts
            raise DatabaseUnavailable("the database cannot be used at the moment; try again later") from error
        if facts is None:
            raise _wrong_key()
        return facts

    def _alive(self, facts: KeyFacts) -> KeyFacts:
        if facts.good_until is not None and facts.good_until <= self._clock():
            raise Unauthorized("this API key has expired or was replaced; use a newer one")
        return facts

    def _check_wrong(self, name: str, now: float) -> None:
        found_at = self._wrong.get(name)
        if found_at is None:
            return
        if now - found_at < WRONG_S:
            raise _wrong_key()
        del self._wrong[name]

    def _ask(self, name: str) -> asyncio.Future[KeyFacts | None]:
        """One question at a time for a name, however many wait for the answer."""
        future = self._asked.get(name)
        if future is None:
            future = self._asked[name] = asyncio.get_running_loop().create_future()
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._answer())
        return _share(future)

    async def _answer(self) -> None:
        """Until nobody asks any more."""
        while self._asked:
            names = list(self._asked)[:_MOST_AT_ONCE]
            changes = self._changes
            try:
                found = await self._read(names)
            except Exception as error:
                if not isinstance(error, DatabaseUnavailable):
                    log.exception("reading keys failed")
                for name in names:
                    _settle(self._asked.pop(name), error)
                continue
            if changes != self._changes:
                continue  # what was read may be from before a change
            for name in names:
                self._remember(name, found.get(name))
                _settle(self._asked.pop(name), found.get(name))

    async def _read(self, names: list[str]) -> dict[str, KeyFacts]:
        if self._clock() < self._lost_until:
            raise DatabaseUnavailable("the database cannot be used at the moment; try again later")
        try:
            async with self._database.read(EVERY_PROJECT) as session:
                found = await read_keys(session, {n for n in names if n != _DEFAULT})
                if _DEFAULT in names and self._until_keys and await any_keys(session):
                    self._open_scopes = NOBODY
                if _DEFAULT in names and (default := await read_project(session, DEFAULT_PROJECT)):
                    found[_DEFAULT] = default
                return found
        except DatabaseUnavailable:
            self._lost_until = self._clock() + _RETRY_S
            raise

    def _remember(self, name: str, facts: KeyFacts | None) -> None:
        if facts is None:
            self._known.pop(name, None)
            self._wrong[name] = self._clock()
            self._wrong.move_to_end(name)
            if len(self._wrong) > _MOST_WRONG:
                self._wrong.popitem(last=False)
            return
        self._wrong.pop(name, None)
        self._known[name] = _Known(facts, self._clock())
        self._known.move_to_end(name)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)


def _wrong_key() -> Unauthorized:
    return Unauthorized("the API key is wrong, expired or revoked")


def _share(future: asyncio.Future[KeyFacts | None]) -> asyncio.Future[KeyFacts | None]:
    """The same answer; who gives up waiting does not take it from the others."""
    return asyncio.shield(future)


def _settle(future: asyncio.Future[KeyFacts | None], answer: KeyFacts | Exception | None) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        future.exception()  # nobody need wait for it
    else:
        future.set_result(answer)


def _retrieve(future: asyncio.Future[KeyFacts | None]) -> None:
    if not future.cancelled():
        future.exception()
