"""Who did what, through the official client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.resources.admin.organization import AsyncOrganization

from tests.server.organization.conftest import House


@pytest.fixture
async def project_id(house: House, admin: AsyncOrganization) -> str:
    """Of a project with which something is done every ten seconds."""
    house.clock.pass_s(10)
    project = await admin.projects.create(name="red")
    house.clock.pass_s(10)
    await admin.projects.update(project.id, name="blue")
    house.clock.pass_s(10)
    (limit,) = [x async for x in admin.projects.rate_limits.list_rate_limits(project.id)]
    await admin.projects.rate_limits.update_rate_limit(
        limit.id, project_id=project.id, max_requests_per_1_minute=9
    )
    house.clock.pass_s(10)
    account = await admin.projects.service_accounts.create(project.id, name="robot")
    house.clock.pass_s(10)
    await admin.projects.service_accounts.delete(account.id, project_id=project.id)
    return project.id


async def types(admin: AsyncOrganization, **more: Any) -> list[str]:
    return [entry.type async for entry in admin.audit_logs.list(**more)]


async def test_every_act_is_in_the_log(admin: AsyncOrganization, project_id: str) -> None:
    """Newest first, with who did it, in which project, and what was said."""
    found = {entry.type: entry async for entry in admin.audit_logs.list(project_ids=[project_id], limit=2)}
    assert list(found) == [
        "service_account.deleted",
        "api_key.deleted",
        "api_key.created",
        "service_account.created",
        "rate_limit.updated",
        "project.updated",
        "project.created",
    ]
    (key,) = [k async for k in admin.admin_api_keys.list()]
    for entry in found.values():
        assert entry.actor is not None
        assert entry.actor.api_key is not None
        assert (entry.actor.type, entry.actor.api_key.id) == ("api_key", key.id)
        assert entry.project is not None
        assert (entry.project.id, entry.project.name) == (project_id, "blue")
    created, changed = found["project.created"].project_created, found["project.updated"].project_updated
    assert created is not None
    assert created.data is not None
    assert (created.id, created.data.name) == (project_id, "red")
    assert changed is not None
    assert changed.changes_requested is not None
    assert changed.changes_requested.title == "blue"
    limited = found["rate_limit.updated"].rate_limit_updated
    assert limited is not None
    assert limited.changes_requested is not None
    assert limited.changes_requested.max_requests_per_1_minute == 9
    secret = found["api_key.created"].api_key_created
    assert secret is not None
    assert secret.data is not None
    assert secret.data.scopes == ["all"]
    gone = found["service_account.deleted"].service_account_deleted
    assert gone is not None
    assert gone.id


async def test_the_log_can_be_searched(house: House, admin: AsyncOrganization, project_id: str) -> None:
    """By time, project, type, actor and what was acted on, also at once."""
    now = int(house.clock.now_s)
    (key,) = [k async for k in admin.admin_api_keys.list()]
    assert await types(admin, resource_ids=[project_id]) == [
        "rate_limit.updated",
        "project.updated",
        "project.created",
    ]
    assert await types(admin, event_types=["project.created"]) == ["project.created"]
    assert await types(admin, actor_ids=["cli"]) == ["api_key.created"]
    assert len(await types(admin, actor_ids=[key.id])) == 7
    assert await types(admin, project_ids=["proj_x"]) == []
    assert await types(admin, actor_emails=["a@b.c"]) == []
    assert await types(admin, effective_at={"gt": now - 40, "lt": now - 20}) == ["project.updated"]
    assert await types(admin, effective_at={"gte": now - 40, "lte": now - 30}) == [
        "project.updated",
        "project.created",
    ]
    assert await types(
        admin, effective_at={"lte": now - 30}, event_types=["project.created", "project.updated"]
    ) == ["project.updated", "project.created"]


async def test_the_log_goes_both_ways(admin: AsyncOrganization, project_id: str) -> None:
    """After an entry come older ones, before it newer ones."""
    found = [entry.id async for entry in admin.audit_logs.list(project_ids=[project_id])]
    page = await admin.audit_logs.list(project_ids=[project_id], before=found[3], limit=2)
    assert [entry.id for entry in page.data] == found[1:3]
    page = await admin.audit_logs.list(project_ids=[project_id], after=found[3], limit=2)
    assert [entry.id for entry in page.data] == found[4:6]


async def test_who_is_no_key_is_a_session(raw: httpx.AsyncClient) -> None:
    """What was done at the terminal of the server has its name there."""
    (entry,) = (await raw.get("organization/audit_logs")).json()["data"]
    assert entry["actor"] == {"type": "session", "session": {"user": {"id": "cli"}}}
    assert "project" not in entry
    assert entry["api_key.created"]["data"]["kind"] == "admin"


@pytest.mark.parametrize(
    "query",
    [
        "effective_at=5",
        "effective_at=5&effective_at[gt]=5",
        "effective_at[eq]=5",
        "effective_at[gt]=x",
        "effective_at[gt]=99999999999999",
    ],
)
async def test_a_time_that_is_none_is_refused(raw: httpx.AsyncClient, query: str) -> None:
    """By its name."""
    answer = await raw.get(f"organization/audit_logs?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("effective_at")
