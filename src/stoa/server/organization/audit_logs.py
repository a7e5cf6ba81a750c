"""/v1/organization/audit_logs: who did what, newest first.

Beyond OpenAI's types there are `api_key.rotated`, `organization.created`, `spend_limit.*` and `spend_alert.*`. There
are no users, so `actor_emails` finds nothing, and no tenants above organizations, so `tenant_only` neither.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from stoa.errors import NotFound
from stoa.server.organization.asking import Ask, Endpoint
from stoa.server.organization.query import ListQuery, Seconds, query_reader
from stoa.tenancy.audit import AuditEntry, AuditFilter

PATH = "/v1/organization/audit_logs"
_RATE_LIMITS = {
    "requests_per_minute": "max_requests_per_1_minute",
    "tokens_per_minute": "max_tokens_per_1_minute",
    "concurrent_requests": "max_concurrent_requests",
}
_DETAILS = {"created": "data", "updated": "changes_requested"}  # what OpenAI calls what was said


class EffectiveAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gt: Seconds | None = None
    gte: Seconds | None = None
    lt: Seconds | None = None
    lte: Seconds | None = None


class AuditQuery(ListQuery, frozen=True, forbid_unknown_fields=True):
    effective_at: EffectiveAt = EffectiveAt()
    project_ids: list[str] = msgspec.field(default_factory=list)
    event_types: list[str] = msgspec.field(default_factory=list)
    actor_ids: list[str] = msgspec.field(default_factory=list)
    actor_emails: list[str] = msgspec.field(default_factory=list)
    resource_ids: list[str] = msgspec.field(default_factory=list)
    tenant_only: bool = False
    order: Literal["asc", "desc"] = "desc"


class AuditLogList(msgspec.Struct, frozen=True):
    """Each of `data`: id, type, effective_at, actor, project, and under the type's name what was done."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


_read_query = query_reader(AuditQuery)


async def list_entries(ask: Ask) -> AuditLogList:
    query = _read_query(ask.request)
    if query.actor_emails or query.tenant_only:
        return AuditLogList([], None, None, has_more=False)
    at = query.effective_at
    wanted = AuditFilter(
        project_ids=query.project_ids,
        event_types=query.event_types,
        actor_ids=query.actor_ids,
        resource_ids=query.resource_ids,
        gt=at.gt,
        gte=at.gte,
        lt=at.lt,
        lte=at.lte,
    )
    page = await ask.office.audit.list(ask.organization_id, wanted, query.cut())
    names = await _project_names(ask, {e.project_id for e in page.items if e.project_id is not None})
    data = [_object(entry, names) for entry in page.items]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return AuditLogList(data, first, last, page.has_more)


async def _project_names(ask: Ask, project_ids: set[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for project_id in sorted(project_ids):
        try:
            found[project_id] = (await ask.office.projects.get(ask.organization_id, project_id)).name
        except NotFound:
            found[project_id] = None
    return found


def _object(entry: AuditEntry, names: dict[str, str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": entry.id,
        "object": "organization.audit_log",
        "type": entry.type,
        "effective_at": entry.effective_at,
        "actor": _actor(entry.actor),
    }
    if entry.project_id is not None:
        found["project"] = {"id": entry.project_id, "name": names[entry.project_id]}
    return {**found, entry.type: _details(entry)}


def _actor(actor: str) -> dict[str, Any]:
    """A key, or else somebody at the server's terminal or on its loopback."""
    if actor.startswith("key_"):
        return {"type": "api_key", "api_key": {"id": actor, "type": "user"}}
    return {"type": "session", "session": {"user": {"id": actor}}}


def _details(entry: AuditEntry) -> dict[str, Any]:
    noun, _, verb = entry.type.rpartition(".")
    said = dict(entry.details)
    if noun == "rate_limit":
        said = {_RATE_LIMITS.get(name, name): value for name, value in said.items()}
    elif noun == "project" and "name" in said:
        said["title"] = said["name"]
    name = _DETAILS.get(verb)
    return {"id": entry.resource_id, **(said if name is None else {name: said})}


ENDPOINTS = (
    Endpoint(
        "get", PATH, "What administrators did, newest first", list_entries, AuditLogList, query=AuditQuery
    ),
)
