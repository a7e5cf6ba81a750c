"""Service accounts, their keys, the projects' keys and the administrators', through the official client."""

from __future__ import annotations

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, ConflictError, NotFoundError
from openai.resources.admin.organization import AsyncOrganization

from tests.server.organization.conftest import House


async def usable(house: House, secret: str) -> bool:
    """Whether a project's key opens what a project's key may."""
    answer = await (await house.http(secret)).get("organization/costs", params={"start_time": 0})
    return answer.status_code == 200


async def test_a_service_account_comes_with_a_key(house: House, admin: AsyncOrganization) -> None:
    """The secret is shown once, and works at once; every call that the client has for accounts."""
    accounts = admin.projects.service_accounts
    made = await accounts.create("default", name="robot", expires_in_seconds=60)
    assert (made.object, made.role, made.name) == (
        "organization.project.service_account",
        "member",
        "robot",
    )
    assert made.api_key is not None
    assert made.api_key.object == "organization.project.service_account.api_key"
    assert made.api_key.expires_at == int(house.clock.now_s) + 60
    assert await usable(house, made.api_key.value)
    found = await accounts.retrieve(made.id, project_id="default")
    assert (found.id, found.name, found.role) == (made.id, "robot", "member")
    changed = await accounts.update(made.id, project_id="default", name="arm", role="owner")
    assert (changed.name, changed.role) == ("arm", "owner")
    assert [a.id async for a in accounts.list("default")] == [made.id]
    deleted = await accounts.delete(made.id, project_id="default")
    assert (deleted.id, deleted.deleted) == (made.id, True)
    assert deleted.object == "organization.project.service_account.deleted"
    assert not await usable(house, made.api_key.value)
    assert [a async for a in accounts.list("default")] == []


async def test_a_service_account_can_come_without_a_key(admin: AsyncOrganization) -> None:
    """Then it has no role, and there is nothing that could expire."""
    accounts = admin.projects.service_accounts
    made = await accounts.create("default", name="robot", create_service_account_only=True)
    assert (made.api_key, made.role) == (None, "none")
    with pytest.raises(BadRequestError, match="expires_in_seconds"):
        await accounts.create("default", name="x", create_service_account_only=True, expires_in_seconds=9)


async def test_a_service_account_gets_further_keys(house: House, admin: AsyncOrganization) -> None:
    """With scopes and a name of their own, or with the account's name and all scopes."""
    account = await admin.projects.service_accounts.create("default", name="robot")
    keys = admin.projects.service_accounts.api_keys
    plain = await keys.create(account.id, project_id="default")
    assert plain.name == "robot"
    assert await usable(house, plain.value)
    narrow = await keys.create(
        account.id, project_id="default", name="n", scopes=["model.request"], expires_in_seconds=5
    )
    assert narrow.expires_at == int(house.clock.now_s) + 5
    assert not await usable(house, narrow.value)
    shown = await admin.projects.api_keys.retrieve(narrow.id, project_id="default")
    assert shown.owner.service_account is not None
    assert (shown.owner.type, shown.owner.service_account.id) == ("service_account", account.id)
    with pytest.raises(BadRequestError, match="unknown scope"):
        await keys.create(account.id, project_id="default", scopes=["everything"])


async def test_a_projects_keys_are_listed_changed_and_deleted(house: House, admin: AsyncOrganization) -> None:
    """Every call that the client has for keys; secrets are not among what it shows."""
    secret = await house.project_key("default")
    account = await admin.projects.service_accounts.create("default", name="robot")
    keys = admin.projects.api_keys
    assert account.api_key is not None
    first, second = [k async for k in keys.list("default", limit=1)]
    assert {first.owner.type, second.owner.type} == {"user", "service_account"}
    mine = first if first.owner.type == "user" else second
    assert mine.object == "organization.project.api_key"
    assert mine.owner_project_access == "active"
    assert secret not in mine.model_dump_json()
    assert mine.redacted_value.endswith(secret[-4:])
    assert [k async for k in keys.list("default", owner_project_access="inactive")] == []
    await keys.update(mine.id, project_id="default", scopes=["model.read"], expires_in_seconds=100)
    changed = await keys.retrieve(mine.id, project_id="default")
    assert changed.expires_at == int(house.clock.now_s) + 100
    assert not await usable(house, secret)
    await keys.update(mine.id, project_id="default", scopes=[])
    assert await usable(house, secret)
    deleted = await keys.delete(mine.id, project_id="default")
    assert (deleted.object, deleted.deleted) == ("organization.project.api_key.deleted", True)
    with pytest.raises(NotFoundError):
        await keys.retrieve(mine.id, project_id="default")
    assert [k.id async for k in keys.list("default")] == [account.api_key.id]


async def test_an_expired_key_cannot_be_changed(house: House, admin: AsyncOrganization) -> None:
    """Nor does it open anything."""
    account = await admin.projects.service_accounts.create("default", name="robot", expires_in_seconds=5)
    assert account.api_key is not None
    house.clock.pass_s(6)
    assert not await usable(house, account.api_key.value)
    with pytest.raises(ConflictError):
        await admin.projects.api_keys.update(account.api_key.id, project_id="default", scopes=[])


async def test_a_rotated_key_has_two_secrets_for_a_while(
    house: House, admin: AsyncOrganization, raw: httpx.AsyncClient
) -> None:
    """The new one at once, the old one until the overlap ends."""
    old = await house.project_key("default")
    (key,) = [k async for k in admin.projects.api_keys.list("default")]
    path = f"organization/projects/default/api_keys/{key.id}"
    rotated = (await raw.post(f"{path}/rotate", json={"overlap_seconds": 60})).json()
    assert rotated["id"] == key.id
    assert rotated["previous_until"] == int(house.clock.now_s) + 60
    assert await usable(house, old)
    assert await usable(house, rotated["value"])
    house.clock.pass_s(61)
    assert not await usable(house, old)
    assert await usable(house, rotated["value"])
    again = (await raw.post(f"{path}/rotate")).json()
    assert not await usable(house, rotated["value"])
    assert await usable(house, again["value"])
    stale = await raw.post(f"{path}/rotate", headers={"If-Match": "1"})
    assert stale.status_code == 409


async def test_a_key_has_limits_of_its_own(house: House, raw: httpx.AsyncClient) -> None:
    """Given with an update, shown with the key, each with its version."""
    await house.project_key("default")
    listed = (await raw.get("organization/projects/default/api_keys")).json()["data"][0]
    path = f"organization/projects/default/api_keys/{listed['id']}"
    assert "rate_limits" not in listed
    limits = {"max_requests_per_1_minute": 7}
    changed = (await raw.post(path, json={"rate_limits": limits}, headers={"If-Match": "1"})).json()
    assert changed["rate_limits"]["max_requests_per_1_minute"] == 7
    assert changed["rate_limits"]["max_tokens_per_1_minute"] == 10**12
    assert (await raw.get(path)).json() == changed
    stale = await raw.post(path, json={"rate_limits": {**limits, "version": 0}})
    assert stale.status_code == 409
    stale = await raw.post(path, json={"rate_limits": limits, "version": 9})
    assert stale.status_code == 409
    both = {"name": "n", "rate_limits": {"max_requests_per_1_minute": None}}
    changed = (await raw.post(path, json=both)).json()
    assert (changed["name"], changed["rate_limits"]["max_requests_per_1_minute"]) == ("n", 10**12)
    assert changed["expires_at"] is None


async def test_an_expiry_can_be_taken_back(house: House, raw: httpx.AsyncClient) -> None:
    """Null means never; what an update does not name stays."""
    await house.project_key("default")
    (key,) = (await raw.get("organization/projects/default/api_keys")).json()["data"]
    path = f"organization/projects/default/api_keys/{key['id']}"
    assert (await raw.post(path, json={"expires_in_seconds": 9})).json()["expires_at"] is not None
    assert (await raw.post(path, json={"name": "y"})).json()["expires_at"] is not None
    assert (await raw.post(path, json={"expires_in_seconds": None})).json()["expires_at"] is None
    answer = await raw.post(path, json={"expires_in_seconds": 0})
    assert answer.json()["error"]["param"] == "expires_in_seconds"


async def test_administrators_make_keys_for_administrators(house: House, admin: AsyncOrganization) -> None:
    """Every call that the client has for them; a key can delete itself and is then nobody's."""
    made = await admin.admin_api_keys.create(name="night", expires_in_seconds=3600)
    assert made.object == "organization.admin_api_key"
    assert made.expires_at == int(house.clock.now_s) + 3600
    night = await house.official(made.value)
    shown = await night.admin_api_keys.retrieve(made.id)
    assert made.value not in shown.model_dump_json()
    assert (shown.owner.type, shown.owner.role, shown.owner.object) == ("user", "owner", "organization.user")
    names = [k.name async for k in night.admin_api_keys.list(limit=1)]
    assert sorted(str(n) for n in names) == ["night", "root"]
    newest = [k.id async for k in night.admin_api_keys.list(order="desc")]
    assert newest == [k.id async for k in night.admin_api_keys.list(order="asc")][::-1]
    deleted = await night.admin_api_keys.delete(made.id)
    assert (deleted.object, deleted.deleted) == ("organization.admin_api_key.deleted", True)
    with pytest.raises(AuthenticationError):
        await night.admin_api_keys.list()
