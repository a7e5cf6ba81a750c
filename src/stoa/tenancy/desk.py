"""Where administrators' acts are done: one transaction each, with its entry in the audit log, and then word to
those in this process who remember what was changed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import Conflict, NotFound
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy import tables
from stoa.tenancy.audit import entry


def nobody(changed_id: str) -> None:
    pass


class Desk:
    """`changed` is called after an act with the id of the key, project or organization it changed."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        changed: Callable[[str], None] = nobody,
    ) -> None:
        self.database = database
        self._clock = clock
        self._changed = changed

    def now(self) -> int:
        return int(self._clock())

    @asynccontextmanager
    async def act(self, *changed_ids: str) -> AsyncIterator[AsyncSession]:
        """Raises Conflict if somebody else made the same thing meanwhile, DatabaseUnavailable."""
        try:
            async with self.database.begin(EVERY_PROJECT) as session:
                yield session
        except IntegrityError:
            raise Conflict("somebody else has changed this meanwhile; read it again") from None
        finally:  # also when nobody knows whether the commit arrived
            for changed_id in changed_ids:
                self._changed(changed_id)

    @asynccontextmanager
    async def look(self) -> AsyncIterator[AsyncSession]:
        async with self.database.read(EVERY_PROJECT) as session:
            yield session

    def record(
        self,
        session: AsyncSession,
        owner: tables.Project | tuple[str, str | None],
        actor: str,
        type_: str,
        resource_id: str,
        **details: Any,
    ) -> None:
        """`owner`: the project, or the ids of organization and project."""
        pair = (owner.organization_id, owner.id) if isinstance(owner, tables.Project) else owner
        session.add(entry(*pair, actor, type_, resource_id, self.now(), details))


async def get_project(
    session: AsyncSession, organization_id: str, project_id: str, *, active: bool = False
) -> tables.Project:
    """Raises NotFound; Conflict if it must be `active` and is archived."""
    row = await session.scalar(
        select(tables.Project).where(
            tables.Project.id == project_id, tables.Project.organization_id == organization_id
        )
    )
    if row is None:
        raise NotFound(f"no project {project_id!r}", param="project_id")
    if active and row.archived_at is not None:
        raise Conflict(f"project {project_id!r} is archived")
    return row


async def check_owner(
    session: AsyncSession, organization_id: str, project_id: str | None, *, active: bool = False
) -> tuple[str, str | None]:
    """That the project, or without one the organization, exists. Raises NotFound, Conflict."""
    if project_id is not None:
        await get_project(session, organization_id, project_id, active=active)
    elif await session.get(tables.Organization, organization_id) is None:
        raise NotFound(f"no organization {organization_id!r}")
    return organization_id, project_id
