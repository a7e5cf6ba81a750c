"""Work that outlives its request acts for the key that asked, as long as that is good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import DatabaseUnavailable, Unauthorized
from stoa.storage.database import Database
from stoa.storage.scope import Scope
from stoa.tenancy.authority import STATIC_KEY_ID, Authority
from stoa.tenancy.delegates import Delegates
from stoa.tenancy.office import open_office
from tests.tenancy.meters.clock import ManualClock


async def test_it_is_who_the_key_is(database: Database) -> None:
    """The very principal that the key itself is let in as, with what was changed since."""
    clock = ManualClock()
    office = open_office(database, clock=clock)
    new = await office.keys.create(
        "default", "default", actor="cli", name="k", scopes=["model.request"], expires_at=int(clock()) + 100
    )
    authority = Authority(database, clock=clock, write_uses_s=3600.0)
    delegates = Delegates(database, clock=clock)
    mine = await authority.authenticate(new.secret)
    assert await delegates.principal("default", new.key.id) == mine
    await office.keys.rotate("default", "default", new.key.id, actor="cli")
    await office.budgets.set("default", "default", actor="cli", hard_nanos=7)
    clock.pass_s(6)
    later = await delegates.principal("default", new.key.id)
    assert later.budget is not None
    assert later.budget.hard_nanos == 7
    clock.pass_s(100)
    with pytest.raises(Unauthorized):
        await delegates.principal("default", new.key.id)
    await authority.close()


async def test_a_key_that_is_gone_asks_for_nothing(database: Database) -> None:
    """Revoked, another project's, never made, or of an archived project."""
    clock = ManualClock()
    office = open_office(database, clock=clock)
    other = await office.projects.create("default", actor="cli", name="other")
    new = await office.keys.create("default", other.id, actor="cli", name="k")
    delegates = Delegates(database, clock=clock)
    await delegates.principal(other.id, new.key.id)
    await office.keys.revoke("default", other.id, new.key.id, actor="cli")
    await office.projects.archive("default", other.id, actor="cli")
    clock.pass_s(6)
    for project_id, key_id in (
        (other.id, new.key.id),
        ("default", new.key.id),
        (other.id, None),
        ("x", None),
    ):
        with pytest.raises(Unauthorized):
            await delegates.principal(project_id, key_id)


async def test_without_a_key_it_is_the_project(database: Database) -> None:
    """Of an open service, or behind the key of the settings."""
    delegates = Delegates(database, clock=ManualClock())
    for key_id in (None, STATIC_KEY_ID):
        found = await delegates.principal("default", key_id)
        assert (found.project_id, found.key_id, found.is_admin) == ("default", key_id, False)
        assert found.may("model.request")


class SlowDatabase(Database):
    """Reads when it is let, and counts how often it is asked to."""

    reads = 0
    lost = False

    @asynccontextmanager
    async def read(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        self.reads += 1
        await self.let.wait()
        if self.lost:
            raise DatabaseUnavailable("lost")
        async with super().read(scope) as session:
            yield session

    let: asyncio.Event


@pytest.fixture
async def slow(database_url: str) -> AsyncIterator[SlowDatabase]:
    found = SlowDatabase(database_url)
    found.let = asyncio.Event()
    yield found
    await found.close()


async def test_many_who_ask_at_once_make_one_read(slow: SlowDatabase) -> None:
    """Who gives up meanwhile does not take it from the others; another project's is a read of its own."""
    delegates = Delegates(slow, clock=ManualClock())
    asking = [asyncio.ensure_future(delegates.principal("default", None)) for _ in range(100)]
    other = asyncio.ensure_future(delegates.principal("other", None))
    await asyncio.sleep(0.01)
    for task in asking[:50]:
        task.cancel()
    await asyncio.sleep(0.01)
    slow.let.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in found[:50])
    assert {each.project_id for each in found[50:] if not isinstance(each, BaseException)} == {"default"}
    with pytest.raises(Unauthorized):
        await other
    assert slow.reads == 2


async def test_a_failed_read_is_not_remembered(slow: SlowDatabase) -> None:
    """All who waited for it are told; who asks then reads again."""
    delegates = Delegates(slow, clock=ManualClock())
    slow.lost = True
    asking = [asyncio.ensure_future(delegates.principal("default", None)) for _ in range(10)]
    await asyncio.sleep(0.01)
    slow.let.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(each) for each in found} == {DatabaseUnavailable}
    slow.lost = False
    assert (await delegates.principal("default", None)).project_id == "default"
    assert slow.reads == 2
