"""Projects, through the official client."""

from __future__ import annotations

import httpx
import pytest
from openai import BadRequestError, ConflictError, NotFoundError
from openai.resources.admin.organization import AsyncOrganization

from tests.server.organization.conftest import House


async def test_a_project_is_made_read_renamed_and_archived(house: House, admin: AsyncOrganization) -> None:
    """Every call that the client has."""
    made = await admin.projects.create(name=" red ")
    assert (made.object, made.name, made.status) == ("organization.project", "red", "active")
    assert made.created_at == int(house.clock.now_s)
    assert made.archived_at is None
    assert (await admin.projects.retrieve(made.id)).model_dump() == made.model_dump()
    renamed = await admin.projects.update(made.id, name="blue")
    assert (renamed.id, renamed.name) == (made.id, "blue")
    house.clock.pass_s(5)
    archived = await admin.projects.archive(made.id)
    assert (archived.status, archived.archived_at) == ("archived", int(house.clock.now_s))
    assert [p.id async for p in admin.projects.list()] == ["default"]
    assert [p.id async for p in admin.projects.list(include_archived=True)] == ["default", made.id]
    with pytest.raises(ConflictError):
        await admin.projects.update(made.id, name="green")


async def test_a_list_comes_in_pages(house: House, admin: AsyncOrganization) -> None:
    """The client walks them by itself, and each says where it begins and ends."""
    names = [f"p{n}" for n in range(5)]
    for name in names:
        house.clock.pass_s(1)
        await admin.projects.create(name=name)
    assert [p.name async for p in admin.projects.list(limit=2) if p.id != "default"] == names
    page = await admin.projects.list(limit=2)
    assert page.has_more
    assert page.last_id == page.data[-1].id
    assert page.model_extra is not None
    assert page.model_extra["first_id"] == page.data[0].id


async def test_weight_and_version_go_beyond_the_client(raw: httpx.AsyncClient) -> None:
    """They are further fields; the ETag is the version."""
    made = await raw.post("organization/projects", json={"name": "x", "weight": 2.5})
    assert made.json()["weight"] == 2.5
    assert made.headers["etag"] == f'"{made.json()["version"]}"'
    path = f"organization/projects/{made.json()['id']}"
    changed = (await raw.post(path, json={"weight": 4})).json()
    assert changed["weight"] == 4
    assert changed["name"] == "x"
    assert changed["version"] > made.json()["version"]


@pytest.mark.parametrize("by_header", [True, False])
async def test_of_two_administrators_who_edit_at_once_one_is_refused(
    raw: httpx.AsyncClient, by_header: bool
) -> None:
    """Who saw an older version gets 409 and changes nothing."""
    seen = await raw.get("organization/projects/default")
    statuses = []
    for name in ("first", "second"):
        body = {"name": name} if by_header else {"name": name, "version": seen.json()["version"]}
        headers = {"If-Match": seen.headers["etag"]} if by_header else {}
        answer = await raw.post("organization/projects/default", json=body, headers=headers)
        statuses.append(answer.status_code)
    assert statuses == [200, 409]
    assert answer.json()["error"]["code"] == "conflict"
    assert (await raw.get("organization/projects/default")).json()["name"] == "first"


async def test_the_default_project_stays(admin: AsyncOrganization) -> None:
    """It cannot be archived."""
    with pytest.raises(BadRequestError, match="default project"):
        await admin.projects.archive("default")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=many", "limit"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit[]=1", "limit[]"),
        ("color=red", "color"),
        ("order=up", "order"),
        ("include_archived=perhaps", "include_archived"),
        ("after=proj_none", "after"),
        ("after=a%00b", "after"),
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused_by_name(
    raw: httpx.AsyncClient, query: str, param: str
) -> None:
    """Unknown, repeated and malformed parameters are not passed over."""
    answer = await raw.get(f"organization/projects?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x", "weight": 0}, "weight"),
        ({"name": "x", "geography": "EU"}, "geography"),
    ],
)
async def test_a_body_that_cannot_be_meant_is_refused_by_name(
    raw: httpx.AsyncClient, body: dict[str, object], param: str
) -> None:
    """Unknown and malformed fields are not passed over."""
    answer = await raw.post("organization/projects", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("header", ["x", '"x"', "1, 2", ""])
async def test_if_match_is_a_version(raw: httpx.AsyncClient, header: str) -> None:
    """Something else is refused, not passed over."""
    answer = await raw.post("organization/projects/default", json={"name": "x"}, headers={"If-Match": header})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "If-Match"


@pytest.mark.parametrize("project_id", ["proj_none", "%00", "é", "x" * 300])
async def test_what_is_not_there_is_not_found(raw: httpx.AsyncClient, project_id: str) -> None:
    """Whatever stands where an id should."""
    assert (await raw.get(f"organization/projects/{project_id}")).status_code == 404


async def test_a_wrong_method_is_told_the_right_ones(raw: httpx.AsyncClient) -> None:
    """All of them, from one path."""
    answer = await raw.delete("organization/projects")
    assert answer.status_code == 405
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(", "))


async def test_the_client_names_what_is_missing(admin: AsyncOrganization) -> None:
    """As its own error, with the reason."""
    with pytest.raises(NotFoundError, match="proj_none"):
        await admin.projects.retrieve("proj_none")
