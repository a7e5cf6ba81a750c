"""Usage and costs against rows written by hand, through the official client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import BadRequestError
from openai.resources.admin.organization import AsyncOrganization
from sqlalchemy import delete

from stoa.economics.records import UsageRecord
from stoa.economics.tables import LedgerEntry
from stoa.economics.usage import insert_new
from stoa.server.organization.usage import UNUSED
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.tables import Project
from tests.server.organization.conftest import House

DAY = 86_400
D0 = 20_000 * DAY
END = D0 + 2 * DAY
CENT = 10**7


def used(n: int, t: int, project: str, **more: Any) -> UsageRecord:
    fields: dict[str, Any] = {
        "key_id": f"key_{project}", "model": "base", "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5,
    }  # fmt: skip
    return UsageRecord(request_id=f"r{n}", project_id=project, created_at_s=t, **(fields | more))


def cost(n: int, t: int, project: str | None, cents: int, item: str = "compute") -> LedgerEntry:
    return LedgerEntry(
        session_id="s",
        number=n,
        project_id=project,
        key_id=None if project is None else f"key_{project}",
        model=None if project is None else "base",
        line_item=item,
        amount_nanos=cents * CENT,
        quantity=cents * 10**9,
        start_s=t,
    )


@pytest.fixture
async def red(house: House, admin: AsyncOrganization) -> str:
    """The id of a project beside the default one, after two days of both, and of another organization."""
    red = (await admin.projects.create(name="red")).id
    foreign = (await house.office.projects.create(house.other_id, "foreign", actor="cli")).id
    records = [
        used(0, D0, red),
        used(1, D0 + DAY - 1, red, model="poet", service_class="batch"),
        used(2, D0 + DAY, "default"),
        used(3, D0 + DAY + 60, "default", endpoint="embeddings", completion_tokens=0, cached_tokens=0),
        used(4, D0, foreign, prompt_tokens=1000),
    ]
    entries = [
        cost(0, D0, red, 30),
        cost(1, D0, "default", 10),
        cost(2, D0, foreign, 40),
        cost(3, D0, None, 80, "idle compute"),
        cost(4, D0 + DAY, red, 5),
    ]
    async with house.database.begin(EVERY_PROJECT) as session:
        await insert_new(session, house.database.is_sqlite, records)
        session.add_all(entries)
    return red


async def test_usage_is_told_by_day(admin: AsyncOrganization, red: str) -> None:
    """Of the own organization's projects, in buckets without gaps."""
    page = await admin.usage.completions(start_time=D0, end_time=END)
    assert page.object == "page"
    assert (page.has_more, page.next_page) == (False, None)
    assert [(b.start_time, b.end_time) for b in page.data] == [(D0, D0 + DAY), (D0 + DAY, END)]
    first: Any = page.data[0].results[0]
    assert first.object == "organization.usage.completions.result"
    assert (first.input_tokens, first.output_tokens, first.num_model_requests) == (20, 10, 2)
    assert (first.input_cached_tokens, first.project_id) == (8, None)
    assert [len(b.results) for b in page.data] == [1, 1]


async def test_usage_is_grouped_and_filtered(admin: AsyncOrganization, red: str) -> None:
    """By several fields at once, as the client writes lists."""
    page = await admin.usage.completions(
        start_time=D0, end_time=END, group_by=["project_id", "model", "batch"], models=["poet", "base"]
    )
    found: list[list[Any]] = [
        [(r.project_id, r.model, r.batch, r.input_tokens) for r in b.results]  # type: ignore[union-attr]
        for b in page.data
    ]
    assert found == [
        [(red, "base", False, 10), (red, "poet", True, 10)],
        [("default", "base", False, 10)],
    ]
    page = await admin.usage.completions(
        start_time=D0, end_time=END, project_ids=[red], api_key_ids=[f"key_{red}", "key_x"], batch=True
    )
    assert [len(b.results) for b in page.data] == [1, 0]
    page = await admin.usage.completions(start_time=D0, end_time=END, user_ids=["user_x"])
    assert [len(b.results) for b in page.data] == [0, 0]


async def test_lists_may_be_written_without_brackets(raw: httpx.AsyncClient, red: str) -> None:
    """As curl's users do."""
    query = f"start_time={D0}&end_time={END}&group_by=project_id&group_by=model&models=poet"
    page = (await raw.get(f"organization/usage/completions?{query}")).json()
    assert [r["model"] for b in page["data"] for r in b["results"]] == ["poet"]


async def test_usage_comes_in_pages(admin: AsyncOrganization, red: str) -> None:
    """The next one begins where the last ended."""
    first = await admin.usage.completions(start_time=D0, end_time=END, limit=1)
    assert (first.has_more, len(first.data)) == (True, 1)
    assert first.next_page is not None
    second = await admin.usage.completions(start_time=D0, end_time=END, limit=1, page=first.next_page)
    assert (second.has_more, [b.start_time for b in second.data]) == (False, [D0 + DAY])
    with pytest.raises(BadRequestError, match="page"):
        await admin.usage.completions(start_time=D0, page="page_zz")
    with pytest.raises(BadRequestError, match="bucket_width"):
        await admin.usage.completions(start_time=D0, bucket_width="1w")  # type: ignore[arg-type]


async def test_embeddings_have_pages_of_their_own(admin: AsyncOrganization, red: str) -> None:
    """They are not among completions."""
    page = await admin.usage.embeddings(start_time=D0, end_time=END, group_by=["model"])
    (result,) = [r for b in page.data for r in b.results]
    assert result.object == "organization.usage.embeddings.result"
    assert (result.input_tokens, result.model) == (10, "base")


@pytest.mark.parametrize("kind", UNUSED)
async def test_what_the_service_does_not_do_nobody_used(admin: AsyncOrganization, kind: str) -> None:
    """Its pages are there and empty."""
    ask: Any = getattr(admin.usage, kind)
    page = await ask(start_time=D0, end_time=END, group_by=["project_id"])
    assert [len(b.results) for b in page.data] == [0, 0]


async def test_costs_are_told_by_day(admin: AsyncOrganization, red: str) -> None:
    """In dollars, by project and line item; other organizations' are not told, nor nobody's beside them."""
    page = await admin.usage.costs(start_time=D0, end_time=END, group_by=["project_id", "line_item"])
    found: list[list[Any]] = [
        [(r.project_id, r.line_item, r.amount.value) for r in b.results]  # type: ignore[union-attr]
        for b in page.data
    ]
    assert found == [[("default", "compute", 0.1), (red, "compute", 0.3)], [(red, "compute", 0.05)]]
    result: Any = page.data[0].results[0]
    assert result.object == "organization.costs.result"
    assert (result.amount.currency, result.quantity, result.quantity_unit) == ("usd", 10, "duration_seconds")
    page = await admin.usage.costs(start_time=D0, end_time=END, line_items=["memory"])
    assert [len(b.results) for b in page.data] == [0, 0]


async def test_what_nobody_used_can_be_spread(raw: httpx.AsyncClient, red: str) -> None:
    """In proportion to what each used itself, over all organizations."""
    query = {"start_time": D0, "end_time": END, "group_by[]": "project_id", "spread_idle": "true"}
    page = (await raw.get("organization/costs", params=query)).json()
    found = {r["project_id"]: r["amount"]["value"] for r in page["data"][0]["results"]}
    assert found == {"default": 0.2, red: 0.6}


async def test_the_only_organization_sees_what_nobody_used(
    house: House, admin: AsyncOrganization, red: str
) -> None:
    """Where another one has projects, nobody's costs are shown to none of them."""
    async with house.database.begin(EVERY_PROJECT) as session:
        await session.execute(delete(Project).where(Project.organization_id == house.other_id))
    page = await admin.usage.costs(start_time=D0, end_time=END, group_by=["line_item"])
    items = {r.line_item for b in page.data for r in b.results}  # type: ignore[union-attr]
    assert items == {"compute", "idle compute"}


@pytest.mark.parametrize("spread_idle", ["false", "true"])
async def test_a_projects_key_is_told_of_its_project(house: House, red: str, spread_idle: str) -> None:
    """Whatever projects it asks for."""
    http = await house.http(await house.project_key(red, "usage.read"))
    times = {"start_time": D0, "end_time": END, "group_by[]": "project_id"}
    for asked in ({}, {"project_ids[]": ["default", red]}, {"project_ids[]": "default"}):
        costs = (
            await http.get("organization/costs", params={**times, **asked, "spread_idle": spread_idle})
        ).json()
        usage = (await http.get("organization/usage/completions", params={**times, **asked})).json()
        wanted = set() if asked.get("project_ids[]") == "default" else {red}
        assert {r["project_id"] for b in costs["data"] for r in b["results"]} == wanted
        assert {r["project_id"] for b in usage["data"] for r in b["results"]} == wanted


async def test_another_organization_sees_its_own(house: House, red: str) -> None:
    """And nothing of ours, also when it names our projects."""
    other = await house.official(house.other_key)
    page = await other.usage.completions(start_time=D0, end_time=END)
    assert [r.input_tokens for b in page.data for r in b.results] == [1000]  # type: ignore[union-attr]
    page = await other.usage.completions(start_time=D0, end_time=END, project_ids=[red, "default"])
    assert [len(b.results) for b in page.data] == [0, 0]
    costs = await other.usage.costs(start_time=D0, end_time=END, project_ids=[red])
    assert [len(b.results) for b in costs.data] == [0, 0]
