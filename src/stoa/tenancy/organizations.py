"""The organization above the projects."""

from __future__ import annotations

from dataclasses import dataclass

from stoa.errors import NotFound
from stoa.storage.base import new_id
from stoa.tenancy import tables
from stoa.tenancy.checks import check_name, check_version
from stoa.tenancy.desk import Desk


@dataclass(frozen=True)
class Organization:
    id: str
    name: str
    created_at: int
    version: int


class Organizations:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, name: str, *, actor: str) -> Organization:
        """Raises InvalidRequest."""
        row = tables.Organization(
            id=new_id("org"), name=check_name(name), created_at=self._desk.now(), version=1
        )
        async with self._desk.act() as session:
            session.add(row)
            self._desk.record(session, (row.id, None), actor, "organization.created", row.id, name=row.name)
        return _organization(row)

    async def get(self, organization_id: str) -> Organization:
        """Raises NotFound."""
        async with self._desk.look() as session:
            row = await session.get(tables.Organization, organization_id)
        if row is None:
            raise NotFound(f"no organization {organization_id!r}")
        return _organization(row)

    async def rename(
        self, organization_id: str, name: str, *, actor: str, version: int | None = None
    ) -> Organization:
        """Raises InvalidRequest, NotFound, Conflict."""
        name = check_name(name)
        async with self._desk.act(organization_id) as session:
            row = await session.get(tables.Organization, organization_id)
            if row is None:
                raise NotFound(f"no organization {organization_id!r}")
            check_version(version, row.version)
            row.name = name
            self._desk.record(session, (row.id, None), actor, "organization.updated", row.id, name=name)
        return _organization(row)


def _organization(row: tables.Organization) -> Organization:
    return Organization(row.id, row.name, row.created_at, row.version)
