"""Usage and costs in OpenAI's shapes: every bucket there, every sum exact, every project to itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.admin.organization.usage_completions_response import UsageCompletionsResponse
from openai.types.admin.organization.usage_costs_response import UsageCostsResponse
from openai.types.admin.organization.usage_embeddings_response import UsageEmbeddingsResponse

from stoa.economics.buckets import COST_LIMITS, USAGE_LIMITS, Page, page_of
from stoa.economics.cost_report import CostCell, CostFilter, cost_cells, cost_page, spread
from stoa.economics.records import UsageRecord
from stoa.economics.tables import LedgerEntry
from stoa.economics.usage import insert_new
from stoa.economics.usage_report import UsageFilter, usage_page
from stoa.errors import InvalidRequest
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, Scope

DAY = 86_400
D0 = 20_000 * DAY
Results = list[list[dict[str, Any]]]


def used(n: int, t: int, project: str, **more: Any) -> UsageRecord:
    fields: dict[str, Any] = {
        "key_id": f"key_{project}", "model": "base", "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5,
    }  # fmt: skip
    return UsageRecord(request_id=f"r{n}", project_id=project, created_at_s=t, **(fields | more))


@pytest.fixture
async def filled(database: Database) -> Database:
    records = [
        used(0, D0, "a"),
        used(1, D0 + DAY - 1, "a", model="poet", service_class="batch"),
        used(2, D0 + 2 * DAY, "b"),
        used(3, D0 + 2 * DAY + 60, "b", endpoint="embeddings", completion_tokens=0, cached_tokens=0),
        used(4, D0 + 3 * DAY, "a", key_id=None),
    ]
    async with database.begin(EVERY_PROJECT) as session:
        await insert_new(session, database.is_sqlite, records)
    return database


async def usage(
    database: Database, scope: Scope = EVERY_PROJECT, endpoint: Any = "completions", **more: Any
) -> Results:
    async with database.read(scope) as session:
        page = await usage_page(session, Page(D0, D0 + 3 * DAY, DAY, None), endpoint, **more)
    model = UsageCompletionsResponse if endpoint == "completions" else UsageEmbeddingsResponse
    model.model_validate(page)
    assert [(b["start_time"], b["end_time"]) for b in page["data"]] == [
        (D0 + n * DAY, D0 + (n + 1) * DAY) for n in range(3)
    ]
    return [b["results"] for b in page["data"]]


async def test_usage_by_day(filled: Database) -> None:
    """A sum per day with use, an empty bucket without, and what is outside of the time is left out."""
    first, second, third = await usage(filled)
    assert second == []
    assert len(first) == len(third) == 1
    facts = ("input_tokens", "input_cached_tokens", "output_tokens", "num_model_requests", "project_id")
    assert [first[0][f] for f in facts] == [20, 8, 10, 2, None]
    assert [third[0][f] for f in facts] == [10, 4, 5, 1, None]


async def test_usage_by_group(filled: Database) -> None:
    """Only fields that were asked for are set; users do not exist."""
    first, _, third = await usage(
        filled, group_by=["project_id", "model", "batch", "service_tier", "user_id"]
    )
    names = ("project_id", "model", "batch", "service_tier", "user_id", "api_key_id")
    assert [[r[n] for n in names] for r in first + third] == [
        ["a", "base", False, "default", None, None],
        ["a", "poet", True, "flex", None, None],
        ["b", "base", False, "default", None, None],
    ]


async def test_usage_is_filtered(filled: Database) -> None:
    """By project, key, model and batch; users are nobody."""
    for where, found in (
        (UsageFilter(project_ids=["a"]), [2, 0]),
        (UsageFilter(api_key_ids=["key_b"]), [0, 1]),
        (UsageFilter(models=["poet", "none"]), [1, 0]),
        (UsageFilter(batch=True), [1, 0]),
        (UsageFilter(batch=False), [1, 1]),
        (UsageFilter(user_ids=["u"]), [0, 0]),
        (UsageFilter(project_ids=[]), [0, 0]),
    ):
        first, _, third = await usage(filled, where=where)
        assert [sum(r["num_model_requests"] for r in b) for b in (first, third)] == found, where


async def test_a_project_sees_its_own_usage(filled: Database) -> None:
    """Whatever it asks for."""
    for where in (None, UsageFilter(project_ids=["a", "b"])):
        first, _, third = await usage(filled, Scope("b"), group_by=["project_id"], where=where)
        assert first == []
        assert [r["project_id"] for r in third] == ["b"]
    assert await usage(filled, Scope("b"), where=UsageFilter(project_ids=["a"])) == [[], [], []]


async def test_embeddings_have_usage_of_their_own(filled: Database) -> None:
    """With fewer fields, and fewer to group by."""
    first, _, third = await usage(filled, endpoint="embeddings", group_by=["model"])
    assert (first, third[0]["input_tokens"], third[0]["model"]) == ([], 10, "base")
    assert "output_tokens" not in third[0]
    with pytest.raises(InvalidRequest, match="accepted: project_id, user_id, api_key_id, model"):
        await usage(filled, endpoint="embeddings", group_by=["batch"])


@given(
    st.integers(D0, D0 + 10 * DAY),
    st.integers(1, 40 * 3600),
    st.sampled_from(["1m", "1h", "1d"]),
    st.integers(1, 31),
)
def test_pages_cover_the_time_exactly(start: int, length: int, width: str, limit: int) -> None:
    """Pages follow each other bucket by bucket, without gap, from start to end."""
    from stoa.economics.buckets import page_json

    seen, cursor = [], None
    for _ in range(200):
        page = page_of(
            USAGE_LIMITS, 0, start_time=start, end_time=start + length, bucket_width=width, limit=limit, page=cursor
        )  # fmt: skip
        body = page_json(page, {})
        assert 1 <= len(body["data"]) <= limit
        seen += [(b["start_time"], b["end_time"]) for b in body["data"]]
        cursor = body["next_page"]
        assert body["has_more"] == (cursor is not None)
        if cursor is None:
            assert [s for s, _ in seen[1:]] == [e for _, e in seen[:-1]]
            assert (seen[0][0], seen[-1][1]) == (start, start + length)
            break


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"limit": 0}, "1 to 31"),
        ({"limit": 32}, "1 to 31"),
        ({"limit": 1441, "bucket_width": "1m"}, "1 to 1440"),
        ({"bucket_width": "1w"}, "1m, 1h, 1d"),
        ({"end_time": D0}, "end_time"),
        ({"page": "page_zz"}, "next_page"),
        ({"page": "page_1"}, "next_page"),
        ({"page": f"page_{D0 - DAY:x}"}, "next_page"),
    ],
)
def test_bad_questions_are_refused(more: dict[str, Any], names: str) -> None:
    """By name, with what would be accepted."""
    with pytest.raises(InvalidRequest, match=names):
        page_of(USAGE_LIMITS, D0 + 5 * DAY, **({"start_time": D0} | more))


def test_limits_are_those_of_openai() -> None:
    """Without a limit: 7 days, 24 hours, 60 minutes; up to now."""
    for width, buckets in (("1d", 7), ("1h", 24), ("1m", 60)):
        assert (
            len(page_of(USAGE_LIMITS, D0 + 60 * DAY, start_time=D0, bucket_width=width).buckets()) == buckets
        )
    assert page_of(COST_LIMITS, D0 + 1, start_time=D0, limit=180).buckets() == [(D0, D0 + 2)]


def entry(project: str | None, item: str, amount: int, t: int = D0, key: str | None = None) -> LedgerEntry:
    return LedgerEntry(
        session_id="s", number=0, project_id=project, key_id=key, model=project and "m", line_item=item,
        amount_nanos=amount, quantity=3_600_000 << 30, start_s=t,
    )  # fmt: skip


ENTRIES = [
    lambda: entry("a", "compute", 300, key="k1"),
    lambda: entry("a", "memory", 100, key="k2"),
    lambda: entry("b", "compute", 200),
    lambda: entry(None, "idle compute", 100),
    lambda: entry(None, "idle memory", 11),
    lambda: entry(None, "lost", 1),
    lambda: entry(None, "idle compute", 50, D0 + DAY),
]


async def costs(database: Database, scope: Scope = EVERY_PROJECT, **more: Any) -> Results:
    async with database.begin() as session:
        session.add_all([make() for make in ENTRIES])
    async with database.read(scope) as session:
        page = await cost_page(session, scope, Page(D0, D0 + 3 * DAY, DAY, None), **more)
    UsageCostsResponse.model_validate(page)
    return [b["results"] for b in page["data"]]


def nanos(results: Sequence[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [(*[r[n] for n in names], round(r["amount"]["value"] * 1e9)) for r in results]


async def test_costs_by_day(database: Database) -> None:
    """All that was booked, idle and lost too, in dollars."""
    first, second, third = await costs(database)
    assert (nanos(first), nanos(second), third) == ([(712,)], [(50,)], [])
    assert (first[0]["quantity"], first[0]["quantity_unit"]) == (None, None)


async def test_costs_by_project_and_line_item(database: Database) -> None:
    """Idle belongs to nobody; quantities have their units."""
    first, second, _ = await costs(database, group_by=["line_item", "project_id"])
    assert nanos(first, "project_id", "line_item") == [
        (None, "idle compute", 100),
        (None, "idle memory", 11),
        (None, "lost", 1),
        ("a", "compute", 300),
        ("a", "memory", 100),
        ("b", "compute", 200),
    ]
    by_item = {r["line_item"]: (r["quantity"], r["quantity_unit"]) for r in first}
    assert by_item["memory"] == (1.0, "gibibyte_hours")
    assert by_item["compute"] == ((3_600_000 << 30) / 1e9, "duration_seconds")
    assert nanos(second, "project_id", "line_item") == [(None, "idle compute", 50)]


async def test_idle_is_spread(database: Database) -> None:
    """In proportion to what was used that day, exactly; a day without use keeps it."""
    first, second, _ = await costs(database, group_by=["project_id"], spread_idle=True)
    assert nanos(first, "project_id") == [("a", 400 + 67 + 7 + 1), ("b", 200 + 33 + 4)]
    assert nanos(second, "project_id") == [(None, 50)]


async def test_groups_of_a_spread_agree(database: Database) -> None:
    """A project's keys and line items sum to the project."""
    first, _, _ = await costs(database, group_by=["project_id", "api_key_id", "line_item"], spread_idle=True)
    assert sum(n for *_, n in nanos(first)) == 712
    assert sum(n for p, n in nanos(first, "project_id") if p == "a") == 475
    assert ("a", "k1", "idle compute", 50) in nanos(first, "project_id", "api_key_id", "line_item")


async def test_a_project_sees_its_own_costs(database: Database) -> None:
    """And, if asked for, its share of what nobody used, which it could not work out itself."""
    first, second, _ = await costs(database, Scope("b"), group_by=["project_id"])
    assert (nanos(first, "project_id"), second) == ([("b", 200)], [])
    async with database.read(Scope("b")) as session:
        cells = await cost_cells(
            session, Scope("b"), Page(D0, D0 + DAY, DAY, None), by=["project_id"], spread_idle=True
        )
    assert [c.amount_nanos for c in cells] == [237]


async def test_costs_are_filtered(database: Database) -> None:
    """The same with and without spreading, for what is direct."""
    where = CostFilter(project_ids=["a"], api_key_ids=["k1"], line_items=["compute"])
    first, second, _ = await costs(database, where=where)
    assert (nanos(first), second) == ([(300,)], [])
    async with database.read() as session:
        cells = await cost_cells(
            session, EVERY_PROJECT, Page(D0, D0 + DAY, DAY, None), where=where, spread_idle=True
        )
    assert [c.amount_nanos for c in cells] == [300]
    with pytest.raises(InvalidRequest, match="group_by"):
        await costs(database, group_by=["model"])


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("xyz"), st.integers(0, 10**12)), max_size=12
    ),
    st.lists(st.integers(0, 10**12), max_size=3),
)
def test_spreading_makes_and_loses_nothing(used: list[tuple[str, str, int]], idle: list[int]) -> None:
    """The sum is the same, and nothing is nobody's if somebody paid for something."""
    cells = [
        CostCell(D0, {"project_id": p, "api_key_id": k, "line_item": "compute"}, n, 1.0) for p, k, n in used
    ] + [
        CostCell(D0, {"project_id": None, "api_key_id": None, "line_item": item}, n, 1.0)
        for item, n in zip(("idle compute", "idle memory", "lost"), idle, strict=False)
    ]
    found = spread(cells)
    assert sum(c.amount_nanos for c in found) == sum(c.amount_nanos for c in cells)
    if any(n for *_, n in used):
        assert all(c.groups["project_id"] for c in found)
