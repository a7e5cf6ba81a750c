"""Every endpoint: strangers are not let in, projects' keys may not, other organizations find nothing."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from openai.resources.admin.organization import AsyncOrganization

from stoa.server.organization import OPERATIONS, Endpoint, routes
from tests.server.organization.conftest import Administration, House

BODIES: dict[str, dict[str, Any]] = {
    "CreateProject": {"name": "x"},
    "CreateServiceAccount": {"name": "x"},
    "CreateAdminKey": {"name": "x"},
    "UpdateSpendLimit": {"threshold_amount": 1},
    "CreateSpendAlert": {"threshold_amount": 1},
}
IDS = [f"{o.method} {o.path}" for o in OPERATIONS]


@pytest.fixture
async def ids(house: House, admin: AsyncOrganization) -> dict[str, str]:
    """Of things of the default organization, by their name in paths."""
    project = await admin.projects.create(name="red")
    account = await admin.projects.service_accounts.create(project.id, name="robot")
    alert = await house.office.budgets.add_alert("default", project.id, actor="cli", threshold_nanos=1)
    await house.office.budgets.set("default", project.id, actor="cli", hard_nanos=10**9)
    assert account.api_key is not None
    return {
        "project_id": project.id,
        "service_account_id": account.id,
        "key_id": account.api_key.id,
        "alert_id": alert.id,
        "rate_limit_id": f"rl_{project.id}",
    }


async def call(house: House, key: str | None, endpoint: Endpoint, ids: dict[str, str]) -> tuple[int, Any]:
    path = re.sub(r"\{(\w+)\}", lambda name: ids[name[1]], endpoint.path)
    http = await house.http(key)
    body = None if endpoint.body is None else BODIES.get(endpoint.body.__name__, {})
    params = {"start_time": 1} if endpoint.scope else None
    answer = await http.request(endpoint.method.upper(), f"http://stoa{path}", params=params, json=body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("endpoint", OPERATIONS, ids=IDS)
async def test_only_administrators_of_the_organization_may(
    house: House, ids: dict[str, str], endpoint: Endpoint
) -> None:
    """Without a key 401, with a project's key 403, with another organization's admin key 404 or an empty list."""
    assert (await call(house, None, endpoint, ids))[0] == 401
    scopes = ("model.request", "adapter.write") if endpoint.scope else ("all",)
    status, answer = await call(house, await house.project_key(ids["project_id"], *scopes), endpoint, ids)
    assert (status, answer["error"]["code"]) == (403, "insufficient_permissions")
    before = await everything(house, ids)
    status, answer = await call(house, house.other_key, endpoint, ids)
    if "{" in endpoint.path:
        assert (status, answer["error"]["code"]) == (404, "not_found")
    else:
        assert status in (200, 404)
        assert not any(id_ in msgspec.json.encode(answer).decode() for id_ in ids.values())
    assert await everything(house, ids) == before


async def everything(house: House, ids: dict[str, str]) -> list[Any]:
    """What the default organization has."""
    project_id, office = ids["project_id"], house.office
    return [
        await office.projects.list("default", include_archived=True),
        await office.keys.list("default", project_id),
        await office.service_accounts.list("default", project_id),
        await office.limits.of_project("default", project_id),
        await office.budgets.get("default", project_id),
        await office.budgets.alerts("default", project_id),
        await office.audit.list("default"),
    ]


@pytest.mark.parametrize("endpoint", OPERATIONS, ids=IDS)
async def test_the_organizations_administrator_may(
    house: House, ids: dict[str, str], endpoint: Endpoint
) -> None:
    """Every endpoint answers in the form that it declares."""
    if "admin_api_keys/{" in endpoint.path:
        ids["key_id"] = (await house.office.keys.create("default", None, actor="cli", name="x")).key.id
    elif "{project_id}" not in endpoint.path:
        await house.office.budgets.set("default", None, actor="cli", hard_nanos=10**9)
        alert = await house.office.budgets.add_alert("default", None, actor="cli", threshold_nanos=1)
        ids["alert_id"] = alert.id
    status, answer = await call(house, house.admin_key, endpoint, ids)
    assert status == 200, answer
    assert msgspec.to_builtins(msgspec.convert(answer, endpoint.answer)) == answer


async def test_a_key_of_one_project_is_not_found_in_another(house: House, ids: dict[str, str]) -> None:
    """Also within an organization."""
    for endpoint in OPERATIONS:
        if "{project_id}/" in endpoint.path and endpoint.path.count("{") == 2:
            status, answer = await call(house, house.admin_key, endpoint, {**ids, "project_id": "default"})
            assert status == 404, (endpoint.path, answer)


def test_names_in_the_description_are_unique() -> None:
    """Each struct has one, so that a description can refer to it."""
    kinds = {k for o in OPERATIONS for k in (o.body, o.answer, o.query) if k is not None}
    _, components = msgspec.json.schema_components(tuple(kinds))
    assert {k.__name__ for k in kinds} <= set(components)
    assert len({(o.method, o.path) for o in OPERATIONS}) == len(OPERATIONS)


def test_without_an_office_there_are_no_routes() -> None:
    """A service that knows no tenants has nothing to administer."""
    assert routes(Administration(None, None)) == []
