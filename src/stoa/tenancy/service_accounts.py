"""Service accounts: names under which programs hold a project's keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import NotFound
from stoa.storage.base import new_id
from stoa.tenancy import tables
from stoa.tenancy.checks import KEEP, Keep, check_choice, check_expiry, check_name, check_version
from stoa.tenancy.desk import Desk, get_project
from stoa.tenancy.keys import NewKey, api_key, facts, new_row, revoke_all
from stoa.tenancy.pages import FIRST, Cut, Page, page

ROLES = ("owner", "member", "none")


@dataclass(frozen=True)
class ServiceAccount:
    """`role`: "owner", "member" or "none"."""

    id: str
    project_id: str
    name: str
    role: str
    created_at: int
    version: int


@dataclass(frozen=True)
class NewServiceAccount:
    """`key`: its first one, with the secret that is shown only now; None if none was asked for."""

    account: ServiceAccount
    key: NewKey | None


class ServiceAccounts:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(
        self,
        organization_id: str,
        project_id: str,
        name: str,
        *,
        actor: str,
        with_key: bool = True,
        expires_at: int | None = None,
    ) -> NewServiceAccount:
        """`expires_at`: of the key. Without one the role is "none", else "member".

        Raises InvalidRequest, NotFound, Conflict if the project is archived.
        """
        now = self._desk.now()
        name, expires_at = check_name(name), check_expiry(expires_at, now)
        account = tables.ServiceAccount(
            id=new_id("svc_acct"),
            project_id=project_id,
            name=name,
            role="member" if with_key else "none",
            created_at=now,
            version=1,
        )
        new_key = None
        async with self._desk.act() as session:
            project = await get_project(session, organization_id, project_id, active=True)
            session.add(account)
            await session.flush()  # the key refers to it
            self._desk.record(session, project, actor, "service_account.created", account.id, name=name)
            if with_key:
                key, secret = new_row(
                    organization_id,
                    project_id,
                    actor=actor,
                    name=name,
                    scopes=("all",),
                    at=now,
                    expires_at=expires_at,
                    service_account_id=account.id,
                )
                session.add(key)
                self._desk.record(session, project, actor, "api_key.created", key.id, **facts(key))
                new_key = NewKey(api_key(key), secret)
        return NewServiceAccount(_account(account), new_key)

    async def list(self, organization_id: str, project_id: str, cut: Cut = FIRST) -> Page[ServiceAccount]:
        """Raises InvalidRequest, NotFound."""
        row = tables.ServiceAccount
        async with self._desk.look() as session:
            await get_project(session, organization_id, project_id)
            query = select(row).where(row.project_id == project_id)
            return await page(session, query, _account, cut, where=[row.deleted_at.is_(None)])

    async def get(self, organization_id: str, project_id: str, account_id: str) -> ServiceAccount:
        """Raises NotFound."""
        async with self._desk.look() as session:
            await get_project(session, organization_id, project_id)
            return _account(await _get(session, project_id, account_id))

    async def update(
        self,
        organization_id: str,
        project_id: str,
        account_id: str,
        *,
        actor: str,
        name: str | Keep = KEEP,
        role: str | Keep = KEEP,
        version: int | None = None,
    ) -> ServiceAccount:
        """Raises InvalidRequest, NotFound, Conflict."""
        said: dict[str, str] = {}
        if name is not KEEP:
            said["name"] = check_name(name)
        if role is not KEEP:
            said["role"] = check_choice(role, ROLES, "role")
        async with self._desk.act() as session:
            project = await get_project(session, organization_id, project_id, active=True)
            row = await _get(session, project_id, account_id)
            check_version(version, row.version)
            for field, value in said.items():
                setattr(row, field, value)
            self._desk.record(session, project, actor, "service_account.updated", row.id, **said)
        return _account(row)

    async def delete(
        self,
        organization_id: str,
        project_id: str,
        account_id: str,
        *,
        actor: str,
        version: int | None = None,
    ) -> None:
        """With all its keys. Raises NotFound, Conflict."""
        async with self._desk.act(account_id) as session:  # whoever remembers one of its keys forgets it
            project = await get_project(session, organization_id, project_id)
            row = await _get(session, project_id, account_id)
            check_version(version, row.version)
            row.deleted_at = self._desk.now()
            for key_id in await revoke_all(session, row.id, row.deleted_at):
                self._desk.record(session, project, actor, "api_key.deleted", key_id)
            self._desk.record(session, project, actor, "service_account.deleted", row.id, name=row.name)


async def _get(session: AsyncSession, project_id: str, account_id: str) -> tables.ServiceAccount:
    row = tables.ServiceAccount
    query: Select[Any] = select(row).where(
        row.id == account_id, row.project_id == project_id, row.deleted_at.is_(None)
    )
    found: tables.ServiceAccount | None = await session.scalar(query)
    if found is None:
        raise NotFound(f"no service account {account_id!r}", param="service_account_id")
    return found


def _account(row: tables.ServiceAccount) -> ServiceAccount:
    return ServiceAccount(row.id, row.project_id, row.name, row.role, row.created_at, row.version)
