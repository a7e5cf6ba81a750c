"""What a request needs to know of its key: read once, in a few queries for many keys at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.tenancy import tables
from stoa.tenancy.budgets import period_of
from stoa.tenancy.limits import limits_of
from stoa.tenancy.principal import Budget, Limits, Principal


@dataclass(frozen=True)
class KeyFacts:
    """A key that is neither revoked nor of an archived project. `good_until`: Unix seconds; None: for ever."""

    principal: Principal
    service_account_id: str | None = None
    good_until: int | None = None

    def is_about(self, changed_id: str) -> bool:
        """Whether a change of that key, account, project or organization may have changed these facts."""
        who = self.principal
        return changed_id in (who.key_id, who.project_id, who.organization_id, self.service_account_id)


@dataclass(frozen=True)
class _Budgets:
    limits: dict[str, tables.Budget]  # by target, see `budgets.target`
    alerts: dict[str, list[int]]

    def of(self, target: str) -> Budget | None:
        """None if there is neither a hard limit nor an alert."""
        row, alerts = self.limits.get(target), self.alerts.get(target, [])
        if row is None:
            return Budget(alerts=tuple(sorted(alerts))) if alerts else None
        return Budget(period_of(row), row.hard_nanos, tuple(sorted(alerts)))


async def read_keys(session: AsyncSession, hashes: Collection[str]) -> dict[str, KeyFacts]:
    """By hash of the secret; those that are unknown, revoked or of an archived project are not in it."""
    if not hashes:
        return {}
    key = tables.ApiKey
    query = _keys().where(or_(key.secret_sha256.in_(hashes), key.previous_sha256.in_(hashes)))
    rows = list((await session.execute(query)).all())
    budgets = await _read_budgets(session, [row[0] for row in rows])
    found: dict[str, KeyFacts] = {}
    for one, its_project, key_limits, project_limits in rows:
        facts = _facts(one, its_project, key_limits, project_limits, budgets)
        if one.secret_sha256 in hashes:
            found[one.secret_sha256] = facts
        if (old := one.previous_sha256) is not None and old in hashes:
            ends = [t for t in (facts.good_until, one.previous_until) if t is not None]
            found[old] = KeyFacts(facts.principal, facts.service_account_id, min(ends))
    return found


async def read_key(session: AsyncSession, key_id: str) -> KeyFacts | None:
    """By its id; None: unknown, revoked, or of an archived project."""
    row = (await session.execute(_keys().where(tables.ApiKey.id == key_id))).one_or_none()
    if row is None:
        return None
    one, project, key_limits, project_limits = row
    return _facts(one, project, key_limits, project_limits, await _read_budgets(session, [one]))


async def any_keys(session: AsyncSession) -> bool:
    """Has a key ever been made?"""
    return await session.scalar(select(tables.ApiKey.id).limit(1)) is not None


async def read_project(session: AsyncSession, project_id: str) -> KeyFacts | None:
    """What holds for a project whoever asks: a principal without key and scopes. None: unknown or archived."""
    project = await session.get(tables.Project, project_id)
    if project is None or project.archived_at is not None:
        return None
    limits = await session.get(tables.ProjectLimits, project_id)
    budgets = await _read_budgets(session, [], project)
    who = _principal(project.organization_id, project, limits, budgets, None, frozenset(), Limits())
    return KeyFacts(who)


def _keys() -> Any:
    """With their projects and limits, those that are good."""
    key, project = tables.ApiKey, tables.Project
    return (
        select(key, project, tables.KeyLimits, tables.ProjectLimits)
        .outerjoin(project, project.id == key.project_id)
        .outerjoin(tables.KeyLimits, tables.KeyLimits.key_id == key.id)
        .outerjoin(tables.ProjectLimits, tables.ProjectLimits.project_id == key.project_id)
        .where(key.revoked_at.is_(None), project.archived_at.is_(None))
    )


def _facts(
    key: tables.ApiKey,
    project: tables.Project | None,
    key_limits: tables.KeyLimits | None,
    project_limits: tables.ProjectLimits | None,
    budgets: _Budgets,
) -> KeyFacts:
    scopes, limits = frozenset(key.scopes), limits_of(key_limits)
    who = _principal(key.organization_id, project, project_limits, budgets, key.id, scopes, limits)
    return KeyFacts(who, key.service_account_id, key.expires_at)


def _principal(
    organization_id: str,
    project: tables.Project | None,
    limits: tables.ProjectLimits | None,
    budgets: _Budgets,
    key_id: str | None,
    scopes: frozenset[str],
    key_limits: Limits,
) -> Principal:
    return Principal(
        organization_id=organization_id,
        project_id=project.id if project else None,
        key_id=key_id,
        scopes=scopes,
        weight=project.weight if project else 1.0,
        key_limits=key_limits,
        project_limits=limits_of(limits),
        budget=budgets.of(f"project/{project.id}") if project else None,
        organization_budget=budgets.of(f"organization/{organization_id}"),
    )


async def _read_budgets(
    session: AsyncSession, keys: Collection[tables.ApiKey], project: tables.Project | None = None
) -> _Budgets:
    """Of the owners of `keys`, or of a project and its organization."""
    projects = {k.project_id for k in keys if k.project_id} | ({project.id} if project else set())
    organizations = {k.organization_id for k in keys} | ({project.organization_id} if project else set())
    if not organizations:
        return _Budgets({}, {})

    def mine(row: type[tables.Budget | tables.SpendAlert]) -> Any:
        ours = row.organization_id.in_(organizations) & row.project_id.is_(None)
        return select(row).where(or_(row.project_id.in_(projects), ours))

    limits = {row.target: row for row in await session.scalars(mine(tables.Budget))}
    alerts: dict[str, list[int]] = {}
    for row in await session.scalars(mine(tables.SpendAlert)):
        owner = f"project/{row.project_id}" if row.project_id else f"organization/{row.organization_id}"
        alerts.setdefault(owner, []).append(row.threshold_nanos)
    return _Budgets(limits, alerts)
