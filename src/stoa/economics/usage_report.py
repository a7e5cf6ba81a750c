"""Who used how many tokens when, in the shapes of OpenAI's usage API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, false, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.buckets import Page, page_json
from stoa.economics.records import Endpoint
from stoa.economics.tables import UsageRow
from stoa.errors import InvalidRequest

_TIERS = {"interactive": "default", "batch": "flex"}  # OpenAI's names of the service classes
_GROUPS: dict[str, tuple[str, ...]] = {
    "completions": (
        "project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source"
    ),
    "embeddings": ("project_id", "user_id", "api_key_id", "model"),
}  # fmt: skip
_COLUMNS: dict[str, ColumnElement[Any]] = {
    "project_id": UsageRow.project_id.expression,
    "api_key_id": UsageRow.key_id.expression,
    "model": UsageRow.model.expression,
    "batch": UsageRow.service_class.expression,
    "service_tier": UsageRow.service_class.expression,
}


@dataclass(frozen=True)
class UsageFilter:
    """None: all. There are no users, so `user_ids` finds nothing."""

    project_ids: Sequence[str] | None = None
    api_key_ids: Sequence[str] | None = None
    models: Sequence[str] | None = None
    user_ids: Sequence[str] | None = None
    batch: bool | None = None


async def usage_page(
    session: AsyncSession,
    page: Page,
    endpoint: Endpoint,
    *,
    group_by: Sequence[str] = (),
    where: UsageFilter | None = None,
) -> dict[str, Any]:
    """The page as JSON values; buckets without use are there and empty. The session's scope says whose use: one
    project's or everybody's. Raises InvalidRequest for a field that cannot be grouped by."""
    known = _GROUPS[endpoint]
    for name in group_by:
        if name not in known:
            raise InvalidRequest(f"group_by has {name!r}; accepted: {', '.join(known)}", param="group_by")
    columns = {name: _COLUMNS[name] for name in known if name in group_by and name in _COLUMNS}
    query = _query(page, endpoint, columns, where or UsageFilter())
    results: dict[int, list[dict[str, Any]]] = {}
    for row in await session.execute(query):
        groups = dict(zip(columns, row[5:], strict=True))
        results.setdefault(row[0], []).append(_result(endpoint, row, groups, group_by))
    return page_json(page, results)


def bucket_column(column: Any, width_s: int) -> ColumnElement[int]:
    """Start of the bucket that holds `column`. The width is written out: as a parameter it would make two
    expressions of one, and GROUP BY would not know it again."""
    width: ColumnElement[int] = literal_column(str(width_s), BigInteger)
    return (column - column % width).label("bucket")  # type: ignore[no-any-return]


def _query(
    page: Page, endpoint: Endpoint, columns: dict[str, ColumnElement[Any]], where: UsageFilter
) -> Select[Any]:
    bucket = bucket_column(UsageRow.created_at_s, page.width_s)
    groups = [column.label(f"by_{name}") for name, column in columns.items()]
    query = select(
        bucket,
        func.sum(UsageRow.prompt_tokens),
        func.sum(UsageRow.cached_tokens),
        func.sum(UsageRow.completion_tokens),
        func.count(UsageRow.request_id),
        *groups,
    ).where(
        UsageRow.endpoint == endpoint,
        UsageRow.created_at_s >= page.start_s,
        UsageRow.created_at_s < page.end_s,
    )
    for column, wanted in (
        (UsageRow.project_id, where.project_ids),
        (UsageRow.key_id, where.api_key_ids),
        (UsageRow.model, where.models),
    ):
        if wanted is not None:
            query = query.where(column.in_(wanted))
    if where.user_ids is not None:
        query = query.where(false())
    if where.batch is not None:
        same = UsageRow.service_class == "batch"
        query = query.where(same if where.batch else ~same)
    order = [column.nulls_first() for column in columns.values()]
    return query.group_by(bucket, *columns.values()).order_by(bucket, *order)


def _result(
    endpoint: Endpoint, row: Sequence[Any], groups: dict[str, Any], group_by: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "object": f"organization.usage.{endpoint}.result",
        "input_tokens": int(row[1]),
        "num_model_requests": int(row[4]),
        "project_id": groups.get("project_id"),
        "user_id": None,
        "api_key_id": groups.get("api_key_id"),
        "model": groups.get("model"),
    }
    if endpoint == "completions":
        found |= {
            "output_tokens": int(row[3]),
            "input_cached_tokens": int(row[2]),
            "input_uncached_tokens": int(row[1]) - int(row[2]),
            "input_text_tokens": int(row[1]) - int(row[2]),
            "output_text_tokens": int(row[3]),
            "input_cached_text_tokens": int(row[2]),
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "batch": groups["batch"] == "batch" if "batch" in groups else None,
            "service_tier": _TIERS.get(groups["service_tier"]) if "service_tier" in groups else None,
            "api_source": "unlabeled" if "api_source" in group_by else None,
        }
    return found
