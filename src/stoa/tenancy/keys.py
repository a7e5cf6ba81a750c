"""API keys: of projects, and of administrators. A secret is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import Conflict, InvalidRequest, NotFound
from stoa.storage.base import new_id
from stoa.tenancy import tables
from stoa.tenancy.checks import KEEP, Keep, check_expiry, check_name, check_version
from stoa.tenancy.desk import Desk, check_owner
from stoa.tenancy.pages import FIRST, Cut, Page, page
from stoa.tenancy.principal import ADMIN
from stoa.tenancy.secret import hash_secret, new_secret, redact

PROJECT_SCOPES = (
    "all",
    "model.request",
    "model.read",
    "adapter.write",
    "file.read",
    "file.write",
    "usage.read",
)
MAX_OVERLAP_S = 30 * 86400


@dataclass(frozen=True)
class ApiKey:
    """Admin keys have no project. `previous_until`: till when the secret before the last rotation is good."""

    id: str
    organization_id: str
    project_id: str | None
    kind: Literal["project", "admin"]
    name: str
    redacted: str
    scopes: tuple[str, ...]
    service_account_id: str | None
    created_by: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    previous_until: int | None
    version: int


@dataclass(frozen=True)
class NewKey:
    """`secret`: to be shown now, it cannot be had again."""

    key: ApiKey
    secret: str


class Keys:
    """In all methods `project_id` None means the organization's admin keys. Revoked keys are NotFound."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(
        self,
        organization_id: str,
        project_id: str | None,
        *,
        actor: str,
        name: str,
        scopes: Sequence[str] = ("all",),
        expires_at: int | None = None,
        service_account_id: str | None = None,
    ) -> NewKey:
        """Admin keys have the scope "admin" and no other.

        Raises InvalidRequest, NotFound, Conflict if the project is archived.
        """
        now = self._desk.now()
        row, secret = new_row(
            organization_id,
            project_id,
            actor=actor,
            name=check_name(name),
            scopes=check_scopes(scopes) if project_id is not None else (ADMIN,),
            expires_at=check_expiry(expires_at, now),
            service_account_id=service_account_id,
            at=now,
        )
        async with self._desk.act(organization_id) as session:
            owner = await check_owner(session, organization_id, project_id, active=True)
            if service_account_id is not None:
                await _check_account(session, project_id, service_account_id)
            session.add(row)
            self._desk.record(session, owner, actor, "api_key.created", row.id, **facts(row))
        return NewKey(api_key(row), secret)

    async def list(
        self,
        organization_id: str,
        project_id: str | None,
        cut: Cut = FIRST,
        *,
        service_account_id: str | None = None,
    ) -> Page[ApiKey]:
        """Also keys that have expired. Raises InvalidRequest, NotFound."""
        row = tables.ApiKey
        where: list[ColumnElement[bool]] = [row.revoked_at.is_(None)]
        if service_account_id is not None:
            where.append(row.service_account_id == service_account_id)
        async with self._desk.look() as session:
            await check_owner(session, organization_id, project_id)
            return await page(session, _owned(organization_id, project_id), api_key, cut, where=where)

    async def get(self, organization_id: str, project_id: str | None, key_id: str) -> ApiKey:
        """Raises NotFound."""
        async with self._desk.look() as session:
            return api_key(await _get(session, organization_id, project_id, key_id))

    async def find(self, organization_id: str, key_id: str) -> ApiKey:
        """A key of any project of the organization, or of its administrators. Raises NotFound."""
        row = tables.ApiKey
        query = select(row).where(row.organization_id == organization_id, row.id == key_id)
        async with self._desk.look() as session:
            found = await session.scalar(query.where(row.revoked_at.is_(None)))
        if found is None:
            raise NotFound(f"no key {key_id!r}", param="key_id")
        return api_key(found)

    async def names(self, organization_id: str) -> dict[str, str]:
        """By id, of all keys of the organization, revoked ones too."""
        key = tables.ApiKey
        query = select(key.id, key.name).where(key.organization_id == organization_id)
        async with self._desk.look() as session:
            return {row.id: row.name for row in await session.execute(query)}

    async def update(
        self,
        organization_id: str,
        project_id: str | None,
        key_id: str,
        *,
        actor: str,
        name: str | Keep = KEEP,
        scopes: Sequence[str] | Keep = KEEP,
        expires_at: int | Keep | None = KEEP,
        version: int | None = None,
    ) -> ApiKey:
        """Raises InvalidRequest, NotFound, Conflict if it has expired or was changed since `version`."""
        said: dict[str, Any] = {}
        if name is not KEEP:
            said["name"] = check_name(name)
        if scopes is not KEEP:
            if project_id is None:
                raise InvalidRequest("the scopes of an admin key cannot be changed", param="scopes")
            said["scopes"] = [*check_scopes(scopes)]
        if expires_at is not KEEP:
            said["expires_at"] = check_expiry(expires_at, self._desk.now())
        async with self._desk.act(key_id) as session:
            row = await _get(session, organization_id, project_id, key_id)
            check_version(version, row.version)
            self._check_alive(row)
            for field, value in said.items():
                setattr(row, field, value)
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "api_key.updated", row.id, **said)
        return api_key(row)

    async def revoke(
        self,
        organization_id: str,
        project_id: str | None,
        key_id: str,
        *,
        actor: str,
        version: int | None = None,
    ) -> None:
        """For good. Raises NotFound, Conflict."""
        async with self._desk.act(key_id) as session:
            row = await _get(session, organization_id, project_id, key_id)
            check_version(version, row.version)
            row.revoked_at = self._desk.now()
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "api_key.deleted", row.id, name=row.name)

    async def rotate(
        self, organization_id: str, project_id: str | None, key_id: str, *, actor: str, overlap_s: int = 0
    ) -> NewKey:
        """A new secret for the same key, which keeps its id, limits and usage. The old secret is good for
        `overlap_s` more; one before it, from an earlier rotation, stops at once.

        Raises InvalidRequest, NotFound, Conflict if the key has expired.
        """
        if not isinstance(overlap_s, int) or not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise InvalidRequest(f"overlap_s must be 0 to {MAX_OVERLAP_S} seconds", param="overlap_s")
        async with self._desk.act(key_id) as session:
            row = await _get(session, organization_id, project_id, key_id)
            self._check_alive(row)
            row.previous_sha256 = row.secret_sha256 if overlap_s else None
            row.previous_until = self._desk.now() + overlap_s if overlap_s else None
            secret = new_secret(admin=row.kind == "admin")
            row.secret_sha256, row.redacted = hash_secret(secret), redact(secret)
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "api_key.rotated", row.id, overlap_s=overlap_s)
        return NewKey(api_key(row), secret)

    def _check_alive(self, row: tables.ApiKey) -> None:
        if row.expires_at is not None and row.expires_at <= self._desk.now():
            raise Conflict(f"key {row.id!r} has expired; make a new one")


def check_scopes(scopes: object) -> tuple[str, ...]:
    """In the order of PROJECT_SCOPES, each once. Raises InvalidRequest."""
    given = scopes if isinstance(scopes, list | tuple | set | frozenset) else [scopes]
    if unknown := [s for s in given if s not in PROJECT_SCOPES]:
        raise InvalidRequest(
            f"unknown scope {unknown[0]!r}; accepted: {', '.join(PROJECT_SCOPES)}", param="scopes"
        )
    if not given:
        raise InvalidRequest("scopes must name at least one", param="scopes")
    return tuple(s for s in PROJECT_SCOPES if s in given)


def new_row(
    organization_id: str,
    project_id: str | None,
    *,
    actor: str,
    name: str,
    scopes: Sequence[str],
    at: int,
    expires_at: int | None = None,
    service_account_id: str | None = None,
) -> tuple[tables.ApiKey, str]:
    """Of fields that are checked already: the row, and its secret."""
    secret = new_secret(admin=project_id is None)
    row = tables.ApiKey(
        id=new_id("key"),
        organization_id=organization_id,
        project_id=project_id,
        kind="admin" if project_id is None else "project",
        name=name,
        secret_sha256=hash_secret(secret),
        redacted=redact(secret),
        scopes=[*scopes],
        service_account_id=service_account_id,
        created_by=actor,
        created_at=at,
        expires_at=expires_at,
        version=1,
    )
    return row, secret


def facts(row: tables.ApiKey) -> dict[str, Any]:
    """What the audit log keeps of a new key."""
    return {"name": row.name, "kind": row.kind, "scopes": row.scopes, "expires_at": row.expires_at}


def api_key(row: tables.ApiKey) -> ApiKey:
    return ApiKey(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        kind="admin" if row.kind == "admin" else "project",
        name=row.name,
        redacted=row.redacted,
        scopes=tuple(row.scopes),
        service_account_id=row.service_account_id,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        previous_until=row.previous_until,
        version=row.version,
    )


async def revoke_all(session: AsyncSession, service_account_id: str, at: int) -> list[str]:
    """Every key of a service account; their ids."""
    row = tables.ApiKey
    query = select(row).where(row.service_account_id == service_account_id, row.revoked_at.is_(None))
    found = list(await session.scalars(query))
    for key in found:
        key.revoked_at = at
    return [key.id for key in found]


def _owned(organization_id: str, project_id: str | None) -> Any:
    row = tables.ApiKey
    project = row.project_id == project_id if project_id is not None else row.project_id.is_(None)
    return select(row).where(row.organization_id == organization_id, project)


async def _get(
    session: AsyncSession, organization_id: str, project_id: str | None, key_id: str
) -> tables.ApiKey:
    query = _owned(organization_id, project_id)
    row: tables.ApiKey | None = await session.scalar(
        query.where(tables.ApiKey.id == key_id, tables.ApiKey.revoked_at.is_(None))
    )
    if row is None:
        raise NotFound(f"no key {key_id!r}", param="key_id")
    return row


async def _check_account(session: AsyncSession, project_id: str | None, account_id: str) -> None:
    row = tables.ServiceAccount
    query = select(row).where(row.id == account_id, row.deleted_at.is_(None))
    if project_id is None or await session.scalar(query.where(row.project_id == project_id)) is None:
        raise NotFound(f"no service account {account_id!r}", param="service_account_id")
