"""Who is asking, and how seldom the database is asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stoa.errors import DatabaseUnavailable, Unauthorized
from stoa.storage.database import Database
from stoa.storage.scope import Scope
from stoa.tenancy.authority import ANYBODY, ANYBODY_HERE, STALE_S, STATIC_KEY_ID, WRONG_S, Authority
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.principal import Budget, Limits, Principal
from stoa.tenancy.secret import new_secret
from tests.tenancy.offices import ORG, START, ManualClock

TTL_S = 10.0


class WatchedDatabase(Database):
    """Counts readings; can be lost, and slow."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads = 0
        self.lost = False
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def read(self, scope: Scope | None = None) -> AsyncIterator[Any]:
        self.reads += 1
        if self.lost:
            raise DatabaseUnavailable("lost")
        async with super().read(scope) as session:
            yield session
        await self.gate.wait()

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[Any]:
        if self.lost:
            raise DatabaseUnavailable("lost")
        async with super().begin(scope) as session:
            yield session


class House:
    """An authority, the office beside it, and an office in another process that tells it nothing."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.clock = ManualClock()
        self.database, self.elsewhere = WatchedDatabase(url), Database(url)
        settings.setdefault("write_uses_s", 0.0)
        self.authority = Authority(self.database, ttl_s=TTL_S, clock=self.clock, **settings)
        self.office = open_office(self.database, clock=self.clock, changed=self.authority.invalidate)
        self.other_office = open_office(self.elsewhere, clock=self.clock)

    async def who(self, secret: str | None) -> Principal:
        return await self.authority.authenticate(secret)

    async def refuses(self, secret: str | None) -> bool:
        try:
            await self.who(secret)
        except Unauthorized:
            return True
        return False

    async def settle(self) -> None:
        """Until what goes on in the background is over."""
        for task in (self.authority._asking, self.authority._uses._writing):
            if task is not None:
                await asyncio.wait([task])

    async def close(self) -> None:
        await self.authority.close()
        await self.database.close()
        await self.elsewhere.close()


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    found = House(database_url)
    yield found
    await found.close()


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[House]:
    found = House(url, **settings)
    try:
        yield found
    finally:
        await found.close()


async def make_key(office: Office, **more: Any) -> tuple[str, str, str]:
    """Of a project of its own: project, key, secret."""
    project = await office.projects.create(ORG, "P", actor="a", weight=2.5)
    new = await office.keys.create(ORG, project.id, name="k", actor="a", **more)
    return project.id, new.key.id, new.secret


async def test_a_key_brings_all_that_is_known_of_it(house: House) -> None:
    """Scopes, weight, limits of key and project, budgets of project and organization."""
    project, key, secret = await make_key(house.office, scopes=["model.read"])
    assert await house.who(secret) == Principal(ORG, project, key, frozenset({"model.read"}), weight=2.5)
    await house.office.limits.update_key(ORG, project, key, actor="a", requests_per_minute=1)
    await house.office.limits.update_project(ORG, project, actor="a", tokens_per_minute=2)
    await house.office.budgets.add_alert(ORG, project, actor="a", threshold_nanos=9)
    assert (await house.who(secret)).budget == Budget("month", None, (9,))
    await house.office.budgets.add_alert(ORG, project, actor="a", threshold_nanos=5)
    await house.office.budgets.set(ORG, project, actor="a", hard_nanos=10, period="total")
    await house.office.budgets.set(ORG, None, actor="a", hard_nanos=99)
    assert await house.who(secret) == Principal(
        ORG,
        project,
        key,
        frozenset({"model.read"}),
        weight=2.5,
        key_limits=Limits(requests_per_minute=1),
        project_limits=Limits(tokens_per_minute=2),
        budget=Budget("total", 10, (5, 9)),
        organization_budget=Budget("month", 99, ()),
    )


async def test_an_admin_key_has_no_project(house: House) -> None:
    """It is an administrator's and nothing else."""
    new = await house.office.keys.create(ORG, None, name="k", actor="a")
    who = await house.who(new.secret)
    assert (who.is_admin, who.project_id, who.may("model.request")) == (True, None, False)


@pytest.mark.parametrize(
    "secret", [None, "", "none", "sk-stoa-", "sk-stoa-" + "x" * 42, "é" * 51, "\udcff", "x" * 10**6]
)
async def test_what_is_no_key_is_refused_unasked(house: House, secret: str | None) -> None:
    """Without a look at the database."""
    assert await house.refuses(secret)
    assert house.database.reads == 0


async def test_known_keys_are_not_asked_for_again(house: House) -> None:
    """Within the time that they are remembered."""
    _, _, secret = await make_key(house.office)
    for _ in range(50):
        await house.who(secret)
        house.clock.now += TTL_S / 60
    assert house.database.reads == 1


async def test_many_at_once_ask_once(house: House) -> None:
    """For one key, and for many keys together."""
    secrets = [(await make_key(house.office))[2] for _ in range(20)]
    await asyncio.gather(*(house.who(s) for s in secrets * 10))
    assert house.database.reads == 1
    assert len({(await house.who(s)).project_id for s in secrets}) == 20


async def test_one_who_gives_up_takes_nothing_from_the_others(house: House) -> None:
    """The answer still comes."""
    _, key, secret = await make_key(house.office)
    house.database.gate.clear()
    first, second = (asyncio.create_task(house.who(secret)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    house.database.gate.set()
    assert (await second).key_id == key
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_changes_here_count_at_once(house: House) -> None:
    """Revoking, archiving, deleting, rotating, weighing: the next request knows."""
    project, key, secret = await make_key(house.office)
    await house.who(secret)
    await house.office.projects.update(ORG, project, weight=7, actor="a")
    assert (await house.who(secret)).weight == 7
    new = await house.office.keys.rotate(ORG, project, key, actor="a")
    assert await house.refuses(secret)
    assert (await house.who(new.secret)).key_id == key
    made = await house.office.service_accounts.create(ORG, project, "s", actor="a")
    assert made.key is not None
    await house.who(made.key.secret)
    await house.office.service_accounts.delete(ORG, project, made.account.id, actor="a")
    assert await house.refuses(made.key.secret)
    await house.office.projects.archive(ORG, project, actor="a")
    assert await house.refuses(new.secret)


async def test_a_change_while_it_is_read_counts_too(house: House) -> None:
    """What was read before the change is neither served nor remembered after it."""
    project, key, secret = await make_key(house.office)
    house.database.gate.clear()
    asking = asyncio.create_task(house.who(secret))
    await asyncio.sleep(0.05)
    await house.other_office.keys.revoke(ORG, project, key, actor="a")
    house.authority.invalidate(key)
    house.database.gate.set()
    with pytest.raises(Unauthorized):
        await asking
    assert await house.refuses(secret)


async def test_changes_elsewhere_count_after_a_while(house: House) -> None:
    """At the latest after twice the time that keys are remembered, without a request that waits for it."""
    project, key, secret = await make_key(house.office)
    await house.who(secret)
    await house.other_office.projects.update(ORG, project, weight=7, actor="a")
    assert (await house.who(secret)).weight == 2.5
    house.clock.now += TTL_S
    assert (await house.who(secret)).weight == 2.5
    await house.settle()
    assert (await house.who(secret)).weight == 7
    await house.other_office.keys.revoke(ORG, project, key, actor="a")
    house.clock.now += 2 * TTL_S
    assert await house.refuses(secret)


async def test_a_new_key_works_though_it_was_just_wrong(house: House) -> None:
    """A wrong key is remembered shortly, and forgotten when anything is changed here."""
    _, key, secret = await make_key(house.office)
    house.database.reads = 0
    wrong = new_secret(admin=False)
    assert await house.refuses(wrong)
    assert await house.refuses(wrong)
    assert house.database.reads == 1
    house.clock.now += WRONG_S
    assert await house.refuses(wrong)
    assert house.database.reads == 2
    assert (await house.who(secret)).key_id == key


async def test_a_flood_of_wrong_keys(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills a bounded memory, asks few queries, and pushes out no good key."""
    monkeypatch.setattr("stoa.tenancy.authority._MOST_WRONG", 100)
    _, key, secret = await make_key(house.office)
    await house.who(secret)
    wrong = [new_secret(admin=bool(i % 2)) for i in range(3000)]
    assert all(await asyncio.gather(*map(house.refuses, wrong)))
    assert house.database.reads <= 8
    assert len(house.authority._wrong) == 100
    assert not house.authority._asked
    reads = house.database.reads
    assert (await house.who(secret)).key_id == key
    assert house.database.reads == reads


async def test_good_keys_are_bounded_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused is forgotten first, and read again when it comes back."""
    monkeypatch.setattr("stoa.tenancy.authority._MOST_KNOWN", 2)
    made = [await make_key(house.office) for _ in range(3)]
    for project, _, secret in (*made, made[0]):
        assert (await house.who(secret)).project_id == project
    assert len(house.authority._known) == 2


async def test_expiry_counts_at_once(house: House) -> None:
    """To the second, also for what is remembered; the secret before a rotation ends with its overlap."""
    project, key, secret = await make_key(house.office, expires_at=START + 5)
    new = await house.office.keys.rotate(ORG, project, key, actor="a", overlap_s=3)
    for good in (secret, new.secret):
        assert (await house.who(good)).key_id == key
    house.clock.now = START + 2.9
    assert not await house.refuses(secret)
    house.clock.now = START + 3
    assert await house.refuses(secret)
    assert not await house.refuses(new.secret)
    house.clock.now = START + 5
    assert await house.refuses(new.secret)
    await house.settle()
    house.clock.now += 100
    assert await house.refuses(new.secret)


async def test_an_overlap_does_not_outlive_the_key(house: House) -> None:
    """Nor does the overlap before it outlive the next rotation."""
    project, key, first = await make_key(house.office, expires_at=START + 5)
    second = (await house.office.keys.rotate(ORG, project, key, actor="a", overlap_s=60)).secret
    third = (await house.office.keys.rotate(ORG, project, key, actor="a", overlap_s=60)).secret
    assert [await house.refuses(s) for s in (first, second, third)] == [True, False, False]
    house.clock.now += 5
    assert [await house.refuses(s) for s in (first, second, third)] == [True, True, True]


async def test_a_lost_database_is_outlived_for_a_while(house: House) -> None:
    """By keys that are known; the others are told that it is not their fault."""
    _, key, secret = await make_key(house.office)
    _, _, unknown = await make_key(house.office)
    await house.who(secret)
    house.database.lost = True
    for _ in range(int(STALE_S)):
        house.clock.now += 1
        assert (await house.who(secret)).key_id == key
        with pytest.raises(DatabaseUnavailable):
            await house.who(unknown)
    house.clock.now += 1
    with pytest.raises(DatabaseUnavailable):
        await house.who(secret)
    house.database.lost = False
    house.clock.now += 2
    assert (await house.who(secret)).key_id == key
    await house.who(unknown)


async def test_a_lost_database_is_left_alone(house: House) -> None:
    """However many ask, it is tried once a second."""
    _, _, secret = await make_key(house.office)
    house.database.lost = True
    for _ in range(100):
        with pytest.raises(DatabaseUnavailable):
            await house.who(secret)
        house.clock.now += 0.05
    assert house.database.reads <= 6


async def test_the_settings_key_is_the_default_projects(database_url: str) -> None:
    """With all scopes and admin, and with the project's limits."""
    async with opened(database_url, static_key="hello") as house:
        await house.office.limits.update_project(ORG, "default", requests_per_minute=3, actor="a")
        who = await house.who("hello")
        assert (who.project_id, who.key_id, who.scopes) == ("default", STATIC_KEY_ID, {"all", "admin"})
        assert who.project_limits == Limits(requests_per_minute=3)
        for wrong in ("hell", "hello ", "", None, "Hello"):
            assert await house.refuses(wrong)
        _, key, secret = await make_key(house.office)
        assert (await house.who(secret)).key_id == key


@pytest.mark.parametrize("scopes", [ANYBODY, ANYBODY_HERE])
async def test_an_open_service_knows_everybody(database_url: str, scopes: frozenset[str]) -> None:
    """As the default project; one who shows a key of ours must show a good one."""
    async with opened(database_url, open_project=scopes) as house:
        for nobody in (None, "", "none", "sk-123"):
            who = await house.who(nobody)
            assert (who.project_id, who.key_id, who.scopes) == ("default", None, scopes)
        project, key, secret = await make_key(house.office)
        assert (await house.who(secret)).project_id == project
        await house.office.keys.revoke(ORG, project, key, actor="a")
        assert await house.refuses(secret)


async def test_the_first_key_closes_an_open_service(database_url: str) -> None:
    """At once if it is made here, after a while if it is made elsewhere; and for good, also when it is revoked."""
    for here in (True, False):
        house = House(database_url, open_project=ANYBODY_HERE, until_keys=True)
        try:
            if here:
                assert (await house.authority.authenticate(None)).is_admin
            office = house.office if here else house.other_office
            new = await office.keys.create(ORG, None, actor="cli", name="first")
            if not here:
                house.clock.now += 2 * TTL_S
            with pytest.raises(Unauthorized):
                await house.authority.authenticate(None)
            assert (await house.authority.authenticate(new.secret)).is_admin
            await office.keys.revoke(ORG, None, new.key.id, actor="cli")
            with pytest.raises(Unauthorized):
                await house.authority.authenticate(None)
        finally:
            await house.close()


async def test_uses_are_written_together_and_seldom(house: House) -> None:
    """Once a minute for a key at most, at the latest when the service ends."""
    project, key, secret = await make_key(house.office)

    async def used() -> int | None:
        return (await house.office.keys.get(ORG, project, key)).last_used_at

    assert await used() is None
    await house.who(secret)
    await house.settle()
    assert await used() == START
    for _ in range(50):
        house.clock.now += 1
        await house.who(secret)
        await house.settle()
    assert await used() == START
    house.clock.now += 10
    await house.who(secret)
    await house.authority.close()
    assert await used() == START + 60


async def test_a_use_is_no_edit(house: House) -> None:
    """An administrator who read the key before it was used can still change it."""
    project, key, secret = await make_key(house.office)
    await house.who(secret)
    await house.settle()
    await house.office.keys.update(ORG, project, key, name="x", actor="a", version=1)


async def test_uses_wait_for_a_lost_database(house: House) -> None:
    """They are written when it is back."""
    project, key, secret = await make_key(house.office)
    await house.who(secret)
    house.database.lost = True
    await house.settle()
    house.database.lost = False
    await house.authority.close()
    assert (await house.office.keys.get(ORG, project, key)).last_used_at == START
