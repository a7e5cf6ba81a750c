"""Who did what: one entry per administrative act, written in the act's own transaction and never changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from stoa.storage.base import new_id
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy import tables
from stoa.tenancy.pages import NEWEST, Cut, Page, page


@dataclass(frozen=True)
class AuditEntry:
    """`type`: "project.created" …; `actor`: the id of a key, or "cli"; `details`: what was set, never a secret."""

    id: str
    organization_id: str
    project_id: str | None
    effective_at: int
    type: str
    actor: str
    resource_id: str
    details: dict[str, Any]


@dataclass(frozen=True)
class AuditFilter:
    """Empty: all. Times in Unix seconds, each bound optional."""

    project_ids: Collection[str] = ()
    event_types: Collection[str] = ()
    actor_ids: Collection[str] = ()
    resource_ids: Collection[str] = ()
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None


ALL = AuditFilter()


class AuditLog:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, organization_id: str, wanted: AuditFilter = ALL, cut: Cut = NEWEST
    ) -> Page[AuditEntry]:
        """Newest first. Raises InvalidRequest, DatabaseUnavailable."""
        query = select(tables.AuditEntry).where(tables.AuditEntry.organization_id == organization_id)
        async with self._database.read(EVERY_PROJECT) as session:
            return await page(session, query, _entry, cut, where=_criteria(wanted), by=("number",))


def entry(
    organization_id: str,
    project_id: str | None,
    actor: str,
    type_: str,
    resource_id: str,
    at: int,
    details: dict[str, Any],
) -> tables.AuditEntry:
    return tables.AuditEntry(
        id=new_id("audit_log"),
        organization_id=organization_id,
        project_id=project_id,
        effective_at=at,
        type=type_,
        actor=actor,
        resource_id=resource_id,
        details=details,
    )


def _criteria(wanted: AuditFilter) -> list[Any]:
    row = tables.AuditEntry
    among = (
        (row.project_id, wanted.project_ids),
        (row.type, wanted.event_types),
        (row.actor, wanted.actor_ids),
        (row.resource_id, wanted.resource_ids),
    )
    found: list[Any] = [column.in_(list(values)) for column, values in among if values]
    at = row.effective_at
    if wanted.gt is not None:
        found.append(at > wanted.gt)
    if wanted.gte is not None:
        found.append(at >= wanted.gte)
    if wanted.lt is not None:
        found.append(at < wanted.lt)
    if wanted.lte is not None:
        found.append(at <= wanted.lte)
    return found


def _entry(row: tables.AuditEntry) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        effective_at=row.effective_at,
        type=row.type,
        actor=row.actor,
        resource_id=row.resource_id,
        details=row.details,
    )
