"""Projects, their keys, accounts, limits and budgets."""

from __future__ import annotations

import re

import pytest

from stoa.errors import Conflict, InvalidRequest, NotFound
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy import tables
from stoa.tenancy.keys import PROJECT_SCOPES
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.principal import Limits
from stoa.tenancy.secret import hash_secret, is_well_formed, new_secret, redact
from tests.tenancy.offices import ORG, START, ManualClock, ticking_office


@pytest.fixture
def office(database: Database) -> Office:
    return ticking_office(database)


async def test_a_project_is_made_changed_and_archived(office: Office) -> None:
    """Each change counts up its version; archived ones are listed only if asked for."""
    made = await office.projects.create(ORG, "  Acme ", actor="a", weight=2)
    assert (made.name, made.weight, made.version, made.is_archived) == ("Acme", 2.0, 1, False)
    changed = await office.projects.update(ORG, made.id, actor="a", weight=0.5)
    assert (changed.name, changed.weight, changed.version) == ("Acme", 0.5, 2)
    archived = await office.projects.archive(ORG, made.id, actor="a")
    assert archived.archived_at is not None
    assert await office.projects.archive(ORG, made.id, actor="a") == archived
    assert await office.projects.get(ORG, made.id) == archived
    assert [p.id for p in (await office.projects.list(ORG)).items] == ["default"]
    assert archived in (await office.projects.list(ORG, include_archived=True)).items


async def test_an_archived_project_is_closed(office: Office) -> None:
    """Nothing in it can be made or changed."""
    project = await office.projects.create(ORG, "P", actor="a")
    await office.projects.archive(ORG, project.id, actor="a")
    for attempt in (
        office.projects.update(ORG, project.id, name="x", actor="a"),
        office.keys.create(ORG, project.id, name="k", actor="a"),
        office.service_accounts.create(ORG, project.id, "s", actor="a"),
        office.limits.update_project(ORG, project.id, requests_per_minute=1, actor="a"),
        office.budgets.set(ORG, project.id, hard_nanos=1, actor="a"),
        office.budgets.add_alert(ORG, project.id, threshold_nanos=1, actor="a"),
    ):
        with pytest.raises(Conflict, match="archived"):
            await attempt


async def test_the_default_project_stays(office: Office) -> None:
    """It cannot be archived, but renamed and weighed."""
    with pytest.raises(InvalidRequest):
        await office.projects.archive(ORG, "default", actor="a")
    assert (await office.projects.update(ORG, "default", name="Home", weight=3, actor="a")).weight == 3


async def test_a_project_is_found_by_name(office: Office) -> None:
    """If one active project has it; the id always does."""
    one = await office.projects.create(ORG, "P", actor="a")
    assert await office.projects.find(ORG, "P") == await office.projects.find(ORG, one.id) == one
    two = await office.projects.create(ORG, "P", actor="a")
    with pytest.raises(InvalidRequest, match="several"):
        await office.projects.find(ORG, "P")
    await office.projects.archive(ORG, one.id, actor="a")
    assert await office.projects.find(ORG, "P") == two
    with pytest.raises(NotFound):
        await office.projects.find(ORG, "Q")


async def test_a_secret_is_shown_once(office: Office, database: Database) -> None:
    """What is kept is its hash, and what is shown later its last four characters."""
    new = await office.keys.create(ORG, "default", name="k", actor="a")
    assert re.fullmatch(r"sk-stoa-[A-Za-z0-9_-]{43}", new.secret)
    assert new.key.redacted == f"sk-stoa-…{new.secret[-4:]}"
    admin = await office.keys.create(ORG, None, name="k", actor="a")
    assert re.fullmatch(r"sk-stoa-admin-[A-Za-z0-9_-]{43}", admin.secret)
    assert (admin.key.kind, admin.key.scopes, admin.key.project_id) == ("admin", ("admin",), None)
    async with database.read(EVERY_PROJECT) as session:
        row = await session.get(tables.ApiKey, new.key.id)
        assert row is not None
        kept = {c.name: getattr(row, c.name) for c in tables.ApiKey.__table__.columns}
    assert kept["secret_sha256"] == hash_secret(new.secret)
    assert new.secret[8:] not in str(kept)


async def test_keys_are_listed_by_owner(office: Office) -> None:
    """Project keys by project, admin keys by organization; revoked ones are gone."""
    project = await office.projects.create(ORG, "P", actor="a")
    one = (await office.keys.create(ORG, project.id, name="1", actor="me")).key
    two = (await office.keys.create(ORG, project.id, name="2", actor="me")).key
    admin = (await office.keys.create(ORG, None, name="3", actor="me")).key
    assert (await office.keys.list(ORG, project.id)).items == (one, two)
    assert (await office.keys.list(ORG, None)).items == (admin,)
    assert await office.keys.find(ORG, admin.id) == admin
    await office.keys.revoke(ORG, project.id, one.id, actor="me")
    await office.keys.revoke(ORG, None, admin.id, actor="me")
    assert (await office.keys.list(ORG, project.id)).items == (two,)
    assert (await office.keys.list(ORG, None)).items == ()
    for gone in (office.keys.get(ORG, project.id, one.id), office.keys.find(ORG, admin.id)):
        with pytest.raises(NotFound):
            await gone


async def test_scopes_are_kept_in_one_order(office: Office) -> None:
    """Each once."""
    new = await office.keys.create(
        ORG, "default", name="k", actor="a", scopes=["usage.read", "model.read", "usage.read"]
    )
    assert new.key.scopes == ("model.read", "usage.read")
    changed = await office.keys.update(ORG, "default", new.key.id, scopes=PROJECT_SCOPES, actor="a")
    assert changed.scopes == PROJECT_SCOPES


async def test_an_expired_key_stays_expired(database: Database) -> None:
    """It is listed, but neither changed nor rotated; it can be revoked."""
    clock = ManualClock()
    office = open_office(database, clock=clock)
    key = (await office.keys.create(ORG, "default", name="k", actor="a", expires_at=START + 10)).key
    assert (await office.keys.update(ORG, "default", key.id, expires_at=START + 20, actor="a")).expires_at
    clock.now += 20
    for attempt in (
        office.keys.update(ORG, "default", key.id, expires_at=START + 100, actor="a"),
        office.keys.rotate(ORG, "default", key.id, actor="a"),
    ):
        with pytest.raises(Conflict, match="expired"):
            await attempt
    assert len((await office.keys.list(ORG, "default")).items) == 1
    await office.keys.revoke(ORG, "default", key.id, actor="a")


async def test_rotation_keeps_the_key(office: Office) -> None:
    """Its id, name, scopes and limits; the secret is new."""
    new = await office.keys.create(ORG, "default", name="k", actor="a", scopes=["model.read"])
    await office.limits.update_key(ORG, "default", new.key.id, requests_per_minute=3, actor="a")
    again = await office.keys.rotate(ORG, "default", new.key.id, actor="a", overlap_s=60)
    assert again.secret != new.secret
    assert (again.key.id, again.key.name, again.key.scopes) == (new.key.id, "k", ("model.read",))
    assert again.key.redacted == redact(again.secret)
    assert again.key.previous_until is not None
    assert (await office.limits.of_key(ORG, "default", new.key.id)).limits == Limits(requests_per_minute=3)


async def test_a_service_account_has_keys(office: Office) -> None:
    """One at once unless nobody wants it; they go when it goes."""
    made = await office.service_accounts.create(ORG, "default", "bot", actor="a", expires_at=2 * START)
    assert made.key is not None
    assert (made.account.role, made.key.key.name, made.key.key.expires_at) == ("member", "bot", 2 * START)
    assert made.key.key.service_account_id == made.account.id
    bare = await office.service_accounts.create(ORG, "default", "idle", actor="a", with_key=False)
    assert (bare.key, bare.account.role) == (None, "none")
    more = await office.keys.create(ORG, "default", name="k", actor="a", service_account_id=made.account.id)
    mine = await office.keys.list(ORG, "default", service_account_id=made.account.id)
    assert mine.items == (made.key.key, more.key)
    changed = await office.service_accounts.update(ORG, "default", made.account.id, actor="a", role="owner")
    assert (changed.name, changed.role) == ("bot", "owner")
    await office.service_accounts.delete(ORG, "default", made.account.id, actor="a")
    assert (await office.service_accounts.list(ORG, "default")).items == (bare.account,)
    assert (await office.keys.list(ORG, "default")).items == ()
    with pytest.raises(NotFound):
        await office.service_accounts.get(ORG, "default", made.account.id)


async def test_limits_are_set_one_by_one(office: Office) -> None:
    """What an update does not name stays; None takes a limit away."""
    assert (await office.limits.of_project(ORG, "default")).limits == Limits()
    await office.limits.update_project(ORG, "default", actor="a", requests_per_minute=3, tokens_per_minute=4)
    await office.limits.update_project(ORG, "default", actor="a", concurrent_requests=5)
    after = await office.limits.update_project(ORG, "default", actor="a", requests_per_minute=None)
    assert (after.limits, after.version) == (Limits(None, 4, 5), 3)
    assert await office.limits.of_project(ORG, "default") == after


@pytest.mark.parametrize("project_id", ["default", None])
async def test_a_budget_is_set_and_removed(office: Office, project_id: str | None) -> None:
    """Of a project, and of the organization, which are two things though both are called default."""
    other = None if project_id else "default"
    with pytest.raises(NotFound):
        await office.budgets.get(ORG, project_id)
    made = await office.budgets.set(ORG, project_id, hard_nanos=5, actor="a", period="total")
    assert (made.hard_nanos, made.period, made.project_id, made.version) == (5, "total", project_id, 1)
    assert (await office.budgets.set(ORG, project_id, hard_nanos=6, actor="a")).period == "month"
    with pytest.raises(NotFound):
        await office.budgets.get(ORG, other)
    await office.budgets.remove(ORG, project_id, actor="a")
    for attempt in (office.budgets.get(ORG, project_id), office.budgets.remove(ORG, project_id, actor="a")):
        with pytest.raises(NotFound):
            await attempt


@pytest.mark.parametrize("project_id", ["default", None])
async def test_alerts_are_kept_beside_the_budget(office: Office, project_id: str | None) -> None:
    """Several, each with an address to call or people to write to."""
    one = await office.budgets.add_alert(
        ORG, project_id, actor="a", threshold_nanos=5, webhook_url="https://example.com/x?y=1"
    )
    two = await office.budgets.add_alert(
        ORG, project_id, actor="a", threshold_nanos=3, recipients=["a@example.com"], subject_prefix="[x]"
    )
    assert (await office.budgets.alerts(ORG, project_id)).items == (one, two)
    assert (await office.budgets.alerts(ORG, None if project_id else "default")).items == ()
    changed = await office.budgets.update_alert(
        ORG, project_id, two.id, actor="a", recipients=["b@example.com", "c@example.com"], subject_prefix=None
    )
    assert (changed.threshold_nanos, changed.recipients) == (3, ("b@example.com", "c@example.com"))
    assert changed == await office.budgets.get_alert(ORG, project_id, two.id)
    await office.budgets.remove_alert(ORG, project_id, one.id, actor="a")
    assert (await office.budgets.alerts(ORG, project_id)).items == (changed,)


@pytest.mark.parametrize("admin", [True, False])
def test_secrets_are_well_formed(admin: bool) -> None:
    """No two are alike, and nothing beside them looks like one."""
    made = {new_secret(admin=admin) for _ in range(100)}
    assert len(made) == 100
    assert all(map(is_well_formed, made))
    one = made.pop()
    assert not any(
        map(is_well_formed, (one + "x", one[:-1], "x" + one, one + "\n", "sk-" + one[8:], "", "none"))
    )
