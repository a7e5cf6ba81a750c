"""Rate limits of projects and of keys. Both hold: the tighter one is met first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import NotFound
from stoa.tenancy import tables
from stoa.tenancy.checks import KEEP, Keep, check_count, check_version
from stoa.tenancy.desk import Desk, check_owner, get_project
from stoa.tenancy.principal import Limits

NAMES = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


@dataclass(frozen=True)
class SetLimits:
    """`version` 0: never set."""

    limits: Limits
    version: int


class RateLimits:
    """In updates, None takes a limit away and KEEP leaves it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def of_project(self, organization_id: str, project_id: str) -> SetLimits:
        """Raises NotFound."""
        async with self._desk.look() as session:
            await get_project(session, organization_id, project_id)
            return _set_limits(await session.get(tables.ProjectLimits, project_id))

    async def of_key(self, organization_id: str, project_id: str, key_id: str) -> SetLimits:
        """Raises NotFound."""
        async with self._desk.look() as session:
            await _check_key(session, organization_id, project_id, key_id)
            return _set_limits(await session.get(tables.KeyLimits, key_id))

    async def update_project(
        self,
        organization_id: str,
        project_id: str,
        *,
        actor: str,
        requests_per_minute: int | Keep | None = KEEP,
        tokens_per_minute: int | Keep | None = KEEP,
        concurrent_requests: int | Keep | None = KEEP,
        version: int | None = None,
    ) -> SetLimits:
        """Raises InvalidRequest, NotFound, Conflict."""
        said = _said(requests_per_minute, tokens_per_minute, concurrent_requests)
        async with self._desk.act(project_id) as session:
            project = await get_project(session, organization_id, project_id, active=True)
            row = await session.get(tables.ProjectLimits, project_id)
            check_version(version, row.version if row else 0)
            if row is None:
                row = tables.ProjectLimits(project_id=project_id, version=1)
                session.add(row)
            for name, value in said.items():
                setattr(row, name, value)
            self._desk.record(session, project, actor, "rate_limit.updated", project_id, **said)
        return _set_limits(row)

    async def update_key(
        self,
        organization_id: str,
        project_id: str,
        key_id: str,
        *,
        actor: str,
        requests_per_minute: int | Keep | None = KEEP,
        tokens_per_minute: int | Keep | None = KEEP,
        concurrent_requests: int | Keep | None = KEEP,
        version: int | None = None,
    ) -> SetLimits:
        """Raises InvalidRequest, NotFound, Conflict."""
        said = _said(requests_per_minute, tokens_per_minute, concurrent_requests)
        async with self._desk.act(key_id) as session:
            await _check_key(session, organization_id, project_id, key_id)
            row = await session.get(tables.KeyLimits, key_id)
            check_version(version, row.version if row else 0)
            if row is None:
                row = tables.KeyLimits(
                    key_id=key_id, organization_id=organization_id, project_id=project_id, version=1
                )
                session.add(row)
            for name, value in said.items():
                setattr(row, name, value)
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "rate_limit.updated", key_id, **said)
        return _set_limits(row)


def limits_of(row: tables.ProjectLimits | tables.KeyLimits | None) -> Limits:
    if row is None:
        return Limits()
    return Limits(row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests)


def _set_limits(row: tables.ProjectLimits | tables.KeyLimits | None) -> SetLimits:
    return SetLimits(limits_of(row), row.version if row else 0)


def _said(*values: int | Keep | None) -> dict[str, Any]:
    pairs = zip(NAMES, values, strict=True)
    return {name: check_count(value, name) for name, value in pairs if value is not KEEP}


async def _check_key(session: AsyncSession, organization_id: str, project_id: str, key_id: str) -> None:
    await check_owner(session, organization_id, project_id)
    row = tables.ApiKey
    query = select(row.id).where(row.id == key_id, row.project_id == project_id, row.revoked_at.is_(None))
    if await session.scalar(query) is None:
        raise NotFound(f"no key {key_id!r}", param="key_id")
