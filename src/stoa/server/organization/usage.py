"""/v1/organization/usage/…: tokens and requests by time. A project's key with the scope usage.read is told of its own
project. What this service does not do has pages too, and nobody has used it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from stoa.economics.buckets import USAGE_LIMITS, Page, page_json, page_of
from stoa.economics.records import Endpoint as Kind
from stoa.economics.usage_report import UsageFilter, usage_page
from stoa.server.organization.asking import Ask, Endpoint
from stoa.server.organization.query import query_reader
from stoa.server.organization.reach import wanted_projects
from stoa.storage.scope import Scope

PATH = "/v1/organization/usage"
SCOPE = "usage.read"
UNUSED = (
    "audio_speeches", "audio_transcriptions", "code_interpreter_sessions", "decisions", "file_search_calls",
    "images", "moderations", "vector_stores", "web_search_calls",
)  # fmt: skip


class BucketQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[start_time, end_time) in buckets, `limit` of them a page."""

    start_time: int
    end_time: int | None = None
    bucket_width: str = "1d"
    limit: int | None = None
    page: str | None = None
    group_by: list[str] = []
    project_ids: list[str] | None = None
    api_key_ids: list[str] | None = None
    user_ids: list[str] | None = None

    def buckets(self, limits: dict[str, tuple[int, int]], now_s: int) -> Page:
        return page_of(
            limits,
            now_s,
            start_time=self.start_time,
            end_time=self.end_time,
            bucket_width=self.bucket_width,
            limit=self.limit,
            page=self.page,
        )


class EmbeddingsUsageQuery(BucketQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    models: list[str] | None = None


class CompletionsUsageQuery(EmbeddingsUsageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    batch: bool | None = None


class UnusedQuery(CompletionsUsageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    context_levels: list[str] = []
    sizes: list[str] = []
    sources: list[str] = []
    vector_store_ids: list[str] = []


class UsageBucket(msgspec.Struct, frozen=True):
    start_time: int
    end_time: int
    results: list[dict[str, Any]]
    object: str = "bucket"


class UsagePage(msgspec.Struct, frozen=True):
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None
    object: str = "page"


_read_completions = query_reader(CompletionsUsageQuery)
_read_embeddings = query_reader(EmbeddingsUsageQuery)
_read_unused = query_reader(UnusedQuery)


async def completions(ask: Ask) -> dict[str, Any]:
    query = _read_completions(ask.request)
    return await _page(ask, query, "completions", query.models, query.batch)


async def embeddings(ask: Ask) -> dict[str, Any]:
    query = _read_embeddings(ask.request)
    return await _page(ask, query, "embeddings", query.models, None)


async def unused(ask: Ask) -> dict[str, Any]:
    return page_json(_read_unused(ask.request).buckets(USAGE_LIMITS, ask.now()), {})


async def _page(
    ask: Ask, query: BucketQuery, kind: Kind, models: list[str] | None, batch: bool | None
) -> dict[str, Any]:
    buckets = query.buckets(USAGE_LIMITS, ask.now())
    async with ask.database.read(Scope(ask.project_id)) as session:
        project_ids = query.project_ids
        if ask.project_id is None:
            project_ids = await wanted_projects(session, ask.organization_id, project_ids)
        where = UsageFilter(
            project_ids=project_ids,
            api_key_ids=query.api_key_ids,
            models=models,
            user_ids=query.user_ids,
            batch=batch,
        )
        return await usage_page(session, buckets, kind, group_by=query.group_by, where=where)


def _endpoint(
    name: str, what: str, handler: Callable[[Ask], Awaitable[Any]], query: type[BucketQuery]
) -> Endpoint:
    return Endpoint("get", f"{PATH}/{name}", what, handler, UsagePage, query=query, scope=SCOPE)


ENDPOINTS = (
    _endpoint("completions", "Tokens and requests of completions", completions, CompletionsUsageQuery),
    _endpoint("embeddings", "Tokens and requests of embeddings", embeddings, EmbeddingsUsageQuery),
    *(_endpoint(name, "Always empty: there is no such service", unused, UnusedQuery) for name in UNUSED),
)
