"""What projects and organizations may spend, and at which amounts somebody is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import InvalidRequest, NotFound
from stoa.storage.base import new_id
from stoa.tenancy import tables
from stoa.tenancy.alerts import is_public
from stoa.tenancy.checks import (
    KEEP,
    Keep,
    check_choice,
    check_nanos,
    check_prefix,
    check_recipients,
    check_url,
    check_version,
)
from stoa.tenancy.desk import Desk, check_owner
from stoa.tenancy.pages import FIRST, Cut, Page, page

Period = Literal["month", "total"]


@dataclass(frozen=True)
class SpendLimit:
    """A hard budget: beyond `hard_nanos` in a `period` requests are refused."""

    organization_id: str
    project_id: str | None
    period: Period
    hard_nanos: int
    version: int


@dataclass(frozen=True)
class SpendAlert:
    """When spending in the budget's period (a month, without a budget) reaches the threshold, the webhook is
    called and those in `recipients` are to be written to."""

    id: str
    organization_id: str
    project_id: str | None
    threshold_nanos: int
    webhook_url: str | None
    recipients: tuple[str, ...]
    subject_prefix: str | None
    created_at: int
    version: int


class Budgets:
    """In all methods `project_id` None means the organization's own budget and alerts."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get(self, organization_id: str, project_id: str | None) -> SpendLimit:
        """Raises NotFound, also if there is none."""
        async with self._desk.look() as session:
            await check_owner(session, organization_id, project_id)
            row = await session.get(tables.Budget, target(organization_id, project_id))
        if row is None:
            raise NotFound("no spend limit is set")
        return _limit(row)

    async def set(
        self,
        organization_id: str,
        project_id: str | None,
        *,
        actor: str,
        hard_nanos: int,
        period: str = "month",
        version: int | None = None,
    ) -> SpendLimit:
        """`version` 0: only if none was set. Raises InvalidRequest, NotFound, Conflict."""
        check_nanos(hard_nanos, "hard_nanos")
        check_choice(period, ("month", "total"), "period")
        async with self._desk.act(project_id or organization_id) as session:
            owner = await check_owner(session, organization_id, project_id, active=True)
            row = await session.get(tables.Budget, target(organization_id, project_id))
            check_version(version, row.version if row else 0)
            if row is None:
                row = tables.Budget(
                    target=target(organization_id, project_id),
                    organization_id=organization_id,
                    project_id=project_id,
                    version=1,
                )
                session.add(row)
            row.period, row.hard_nanos = period, hard_nanos
            said = {"period": period, "hard_nanos": hard_nanos}
            self._desk.record(session, owner, actor, "spend_limit.updated", row.target, **said)
        return _limit(row)

    async def remove(
        self, organization_id: str, project_id: str | None, *, actor: str, version: int | None = None
    ) -> None:
        """Raises NotFound, also if there is none, Conflict."""
        async with self._desk.act(project_id or organization_id) as session:
            owner = await check_owner(session, organization_id, project_id)
            row = await session.get(tables.Budget, target(organization_id, project_id))
            if row is None:
                raise NotFound("no spend limit is set")
            check_version(version, row.version)
            await session.delete(row)
            self._desk.record(session, owner, actor, "spend_limit.deleted", row.target)

    async def alerts(
        self, organization_id: str, project_id: str | None, cut: Cut = FIRST
    ) -> Page[SpendAlert]:
        """Raises InvalidRequest, NotFound."""
        async with self._desk.look() as session:
            await check_owner(session, organization_id, project_id)
            return await page(session, _owned(organization_id, project_id), _alert, cut)

    async def get_alert(self, organization_id: str, project_id: str | None, alert_id: str) -> SpendAlert:
        """Raises NotFound."""
        async with self._desk.look() as session:
            return _alert(await _get_alert(session, organization_id, project_id, alert_id))

    async def add_alert(
        self,
        organization_id: str,
        project_id: str | None,
        *,
        actor: str,
        threshold_nanos: int,
        webhook_url: str | None = None,
        recipients: Sequence[str] = (),
        subject_prefix: str | None = None,
    ) -> SpendAlert:
        """Raises InvalidRequest, NotFound, Conflict if the project is archived."""
        said = _checked(threshold_nanos, webhook_url, recipients, subject_prefix)
        async with self._desk.act(project_id or organization_id) as session:
            owner = await check_owner(session, organization_id, project_id, active=True)
            row = tables.SpendAlert(
                id=new_id("alert"),
                organization_id=organization_id,
                project_id=project_id,
                created_at=self._desk.now(),
                version=1,
                **said,
            )
            session.add(row)
            self._desk.record(session, owner, actor, "spend_alert.created", row.id, **said)
        return _alert(row)

    async def update_alert(
        self,
        organization_id: str,
        project_id: str | None,
        alert_id: str,
        *,
        actor: str,
        threshold_nanos: int | Keep = KEEP,
        webhook_url: str | Keep | None = KEEP,
        recipients: Sequence[str] | Keep = KEEP,
        subject_prefix: str | Keep | None = KEEP,
        version: int | None = None,
    ) -> SpendAlert:
        """Raises InvalidRequest, NotFound, Conflict."""
        said = _checked(threshold_nanos, webhook_url, recipients, subject_prefix)
        async with self._desk.act(project_id or organization_id) as session:
            row = await _get_alert(session, organization_id, project_id, alert_id)
            check_version(version, row.version)
            for name, value in said.items():
                setattr(row, name, value)
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "spend_alert.updated", row.id, **said)
        return _alert(row)

    async def remove_alert(
        self,
        organization_id: str,
        project_id: str | None,
        alert_id: str,
        *,
        actor: str,
        version: int | None = None,
    ) -> None:
        """Raises NotFound, Conflict."""
        async with self._desk.act(project_id or organization_id) as session:
            row = await _get_alert(session, organization_id, project_id, alert_id)
            check_version(version, row.version)
            await session.delete(row)
            owner = (organization_id, project_id)
            self._desk.record(session, owner, actor, "spend_alert.deleted", row.id)

    async def webhooks(self, organization_id: str, project_id: str | None, threshold_nanos: int) -> list[str]:
        """Where to tell that so much is spent."""
        row = tables.SpendAlert
        query = _owned(organization_id, project_id).where(row.threshold_nanos == threshold_nanos)
        async with self._desk.look() as session:
            return [a.webhook_url for a in await session.scalars(query) if a.webhook_url is not None]


def target(organization_id: str, project_id: str | None) -> str:
    return f"organization/{organization_id}" if project_id is None else f"project/{project_id}"


def period_of(row: tables.Budget) -> Period:
    return "total" if row.period == "total" else "month"


def check_webhook(url: object, param: str = "webhook_url") -> str | None:
    """As far as can be told without asking anybody: where a name leads is looked at before each call. Raises
    InvalidRequest."""
    found = check_url(url, param)
    if found is None:
        return None
    host = (urlsplit(found).hostname or "").rstrip(".")
    try:
        is_open = is_public(str(ip_address(host)))
    except ValueError:  # a name
        is_open = host != "localhost" and not host.endswith(".localhost")
    if not is_open:
        raise InvalidRequest(
            f"{param} is at {host}, which is not an address of the open internet: it would never be called",
            param=param,
        )
    return found


def _checked(
    threshold_nanos: object, webhook_url: object, recipients: object, subject_prefix: object
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if threshold_nanos is not KEEP:
        said["threshold_nanos"] = check_nanos(threshold_nanos, "threshold_nanos")
    if webhook_url is not KEEP:
        said["webhook_url"] = check_webhook(webhook_url)
    if recipients is not KEEP:
        said["recipients"] = check_recipients(recipients)
    if subject_prefix is not KEEP:
        said["subject_prefix"] = check_prefix(subject_prefix)
    return said


def _owned(organization_id: str, project_id: str | None) -> Select[Any]:
    row = tables.SpendAlert
    project = row.project_id == project_id if project_id is not None else row.project_id.is_(None)
    return select(row).where(row.organization_id == organization_id, project)


async def _get_alert(
    session: AsyncSession, organization_id: str, project_id: str | None, alert_id: str
) -> tables.SpendAlert:
    query = _owned(organization_id, project_id).where(tables.SpendAlert.id == alert_id)
    row: tables.SpendAlert | None = await session.scalar(query)
    if row is None:
        raise NotFound(f"no spend alert {alert_id!r}", param="alert_id")
    return row


def _limit(row: tables.Budget) -> SpendLimit:
    return SpendLimit(row.organization_id, row.project_id, period_of(row), row.hard_nanos, row.version)


def _alert(row: tables.SpendAlert) -> SpendAlert:
    return SpendAlert(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        threshold_nanos=row.threshold_nanos,
        webhook_url=row.webhook_url,
        recipients=tuple(row.recipients),
        subject_prefix=row.subject_prefix,
        created_at=row.created_at,
        version=row.version,
    )
