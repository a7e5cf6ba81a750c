"""Projects: a project is a tenant, with adapters, keys, limits and a bill of its own."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from stoa.errors import InvalidRequest, NotFound
from stoa.storage.base import new_id
from stoa.tenancy import tables
from stoa.tenancy.checks import KEEP, Keep, check_name, check_version, check_weight
from stoa.tenancy.desk import Desk, get_project
from stoa.tenancy.pages import FIRST, Cut, Page, page
from stoa.tenancy.principal import DEFAULT_PROJECT


@dataclass(frozen=True)
class Project:
    """`weight`: its share under load, beside the other projects'. Times in Unix seconds."""

    id: str
    organization_id: str
    name: str
    weight: float
    created_at: int
    archived_at: int | None
    version: int

    @property
    def is_archived(self) -> bool:
        return self.archived_at is not None


class Projects:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, organization_id: str, name: str, *, actor: str, weight: float = 1.0) -> Project:
        """Raises InvalidRequest, NotFound for the organization."""
        name, weight = check_name(name), check_weight(weight)
        async with self._desk.act() as session:
            if await session.get(tables.Organization, organization_id) is None:
                raise NotFound(f"no organization {organization_id!r}")
            row = tables.Project(
                id=new_id("proj"),
                organization_id=organization_id,
                name=name,
                weight=weight,
                created_at=self._desk.now(),
                version=1,
            )
            session.add(row)
            self._desk.record(session, row, actor, "project.created", row.id, name=name, weight=weight)
        return _project(row)

    async def list(
        self, organization_id: str, cut: Cut = FIRST, *, include_archived: bool = False
    ) -> Page[Project]:
        """Oldest first. Raises InvalidRequest."""
        query = select(tables.Project).where(tables.Project.organization_id == organization_id)
        where = [] if include_archived else [tables.Project.archived_at.is_(None)]
        async with self._desk.look() as session:
            return await page(session, query, _project, cut, where=where)

    async def get(self, organization_id: str, project_id: str) -> Project:
        """Archived ones too. Raises NotFound."""
        async with self._desk.look() as session:
            return _project(await get_project(session, organization_id, project_id))

    async def ids(self, organization_id: str) -> tuple[str, ...]:
        """Of all, archived ones too."""
        query = select(tables.Project.id).where(tables.Project.organization_id == organization_id)
        async with self._desk.look() as session:
            return tuple(await session.scalars(query))

    async def find(self, organization_id: str, name_or_id: str) -> Project:
        """For people at a terminal: by id, or by the name of the one active project that has it.

        Raises NotFound, InvalidRequest if several have the name.
        """
        row = tables.Project
        query = select(row).where(row.organization_id == organization_id, row.id == name_or_id)
        async with self._desk.look() as session:
            if (found := await session.scalar(query)) is not None:
                return _project(found)
        several = await self.named(organization_id, name_or_id)
        if not several:
            raise NotFound(f"no project {name_or_id!r}", param="project")
        if len(several) > 1:
            ids = ", ".join(project.id for project in several)
            raise InvalidRequest(
                f"several projects are named {name_or_id!r}; say the id: {ids}", param="project"
            )
        return several[0]

    async def named(self, organization_id: str, name: str) -> tuple[Project, ...]:
        """The active ones of that name, oldest first."""
        row = tables.Project
        query = select(row).where(row.organization_id == organization_id, row.name == name)
        query = query.where(row.archived_at.is_(None)).order_by(row.created_at, row.id)
        async with self._desk.look() as session:
            return tuple(map(_project, await session.scalars(query)))

    async def names(self, organization_id: str) -> dict[str, str]:
        """By id, of all, archived ones too."""
        project = tables.Project
        query = select(project.id, project.name).where(project.organization_id == organization_id)
        async with self._desk.look() as session:
            return {row.id: row.name for row in await session.execute(query)}

    async def update(
        self,
        organization_id: str,
        project_id: str,
        *,
        actor: str,
        name: str | Keep = KEEP,
        weight: float | Keep = KEEP,
        version: int | None = None,
    ) -> Project:
        """Raises InvalidRequest, NotFound, Conflict if it is archived or was changed since `version`."""
        said: dict[str, str | float] = {}
        if name is not KEEP:
            said["name"] = check_name(name)
        if weight is not KEEP:
            said["weight"] = check_weight(weight)
        async with self._desk.act(project_id) as session:
            row = await get_project(session, organization_id, project_id, active=True)
            check_version(version, row.version)
            for field, value in said.items():
                setattr(row, field, value)
            self._desk.record(session, row, actor, "project.updated", row.id, **said)
        return _project(row)

    async def archive(
        self, organization_id: str, project_id: str, *, actor: str, version: int | None = None
    ) -> Project:
        """For good: its keys stop to work at once, what it used stays on record. Archiving twice changes nothing.

        Raises NotFound, Conflict, InvalidRequest for the default project.
        """
        if project_id == DEFAULT_PROJECT:
            raise InvalidRequest("the default project cannot be archived", param="project_id")
        async with self._desk.act(project_id) as session:
            row = await get_project(session, organization_id, project_id)
            check_version(version, row.version)
            if row.archived_at is None:
                row.archived_at = self._desk.now()
                self._desk.record(session, row, actor, "project.archived", row.id)
        return _project(row)


def _project(row: tables.Project) -> Project:
    return Project(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        weight=row.weight,
        created_at=row.created_at,
        archived_at=row.archived_at,
        version=row.version,
    )
