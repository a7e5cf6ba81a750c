"""/v1/organization/projects/{project_id}/rate_limits: one object for each project, for all its models.

OpenAI's limits are integers, always there. So no limit is shown as NO_LIMIT, and saying NO_LIMIT, or null, takes a
limit away: what was read can be written back. Beyond OpenAI's fields: `max_concurrent_requests` and `version`.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

import msgspec

from stoa.errors import InvalidRequest, NotFound
from stoa.server.organization.asking import Ask, Endpoint, kept
from stoa.server.organization.lists import ObjectList, ends
from stoa.server.organization.projects import ONE as PROJECT
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.wire import body_reader
from stoa.tenancy.checks import KEEP, MAX_LIMIT, Keep
from stoa.tenancy.limits import SetLimits

NO_LIMIT = MAX_LIMIT
PATH = f"{PROJECT}/rate_limits"
Count = Annotated[int, msgspec.Meta(ge=1, le=NO_LIMIT)] | None | msgspec.UnsetType


class RateLimitObject(msgspec.Struct, frozen=True):
    id: str
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int
    max_concurrent_requests: int
    version: int
    model: str = "*"
    object: str = "project.rate_limit"


class RateLimitList(ObjectList[RateLimitObject], frozen=True):
    pass


class _Said(TypedDict):
    """In the words of `tenancy.limits`."""

    requests_per_minute: int | Keep | None
    tokens_per_minute: int | Keep | None
    concurrent_requests: int | Keep | None


class UpdateRateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_requests_per_1_minute: Count = msgspec.UNSET
    max_tokens_per_1_minute: Count = msgspec.UNSET
    max_concurrent_requests: Count = msgspec.UNSET
    version: int | None = None

    def said(self) -> _Said:
        return _Said(
            requests_per_minute=_limit(self.max_requests_per_1_minute),
            tokens_per_minute=_limit(self.max_tokens_per_1_minute),
            concurrent_requests=_limit(self.max_concurrent_requests),
        )


class RateLimitQuery(ListQuery, frozen=True, forbid_unknown_fields=True):
    limit: int = 100


_read_query = query_reader(RateLimitQuery)
_read_update = body_reader(UpdateRateLimit)


async def list_rate_limits(ask: Ask) -> RateLimitList:
    query, project_id = _read_query(ask.request), ask.id("project_id")
    limits = await ask.office.limits.of_project(ask.organization_id, project_id)
    found = rate_limit(project_id, limits)
    for name, cursor in (("after", query.after), ("before", query.before)):
        if cursor not in (None, found.id):
            raise InvalidRequest(f"{name} names nothing in this list", param=name)
    data = [found] if query.after is None and query.before is None else []
    return RateLimitList(data, *ends(data), has_more=False)


async def update(ask: Ask) -> RateLimitObject:
    body = await _read_update(ask.request, ask.max_body_bytes)
    project_id, limit_id = ask.id("project_id"), ask.id("rate_limit_id")
    if limit_id != _id(project_id):
        raise NotFound(f"no rate limit {limit_id!r}", param="rate_limit_id")
    version = ask.version(body.version)
    limits = await ask.office.limits.update_project(
        ask.organization_id, project_id, actor=ask.actor, version=version, **body.said()
    )
    return rate_limit(project_id, limits)


def rate_limit(owner_id: str, found: SetLimits) -> RateLimitObject:
    """`owner_id`: the project, or the key."""
    limits = found.limits
    return RateLimitObject(
        id=_id(owner_id),
        max_requests_per_1_minute=_shown(limits.requests_per_minute),
        max_tokens_per_1_minute=_shown(limits.tokens_per_minute),
        max_concurrent_requests=_shown(limits.concurrent_requests),
        version=found.version,
    )


def _id(owner_id: str) -> str:
    return f"rl_{owner_id}"


def _shown(limit: int | None) -> int:
    return NO_LIMIT if limit is None else limit


def _limit(value: Count) -> int | Keep | None:
    found = kept(value)
    return found if found is KEEP or found != NO_LIMIT else None


ENDPOINTS = (
    Endpoint(
        "get",
        PATH,
        "A project's rate limits: one object",
        list_rate_limits,
        RateLimitList,
        query=RateLimitQuery,
    ),
    Endpoint(
        "post",
        f"{PATH}/{{rate_limit_id}}",
        "Change a project's rate limits; 10¹² or null: no limit",
        update,
        RateLimitObject,
        UpdateRateLimit,
    ),
)
