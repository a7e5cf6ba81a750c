"""What belongs to an organization, where the tables of use and costs know only projects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.tables import UsageRow
from stoa.tenancy import tables


async def wanted_projects(
    session: AsyncSession, organization_id: str, asked: Sequence[str] | None
) -> list[str] | None:
    """Those of the projects `asked` for (None: all) that are the organization's; None: no need to look.

    Where there is one organization only, all is its own, also what nobody used. Where there are several, nobody's
    costs are shown to none of them, but can be spread.
    """
    row = tables.Project
    others = select(row.id).where(row.organization_id != organization_id).limit(1)
    if await session.scalar(others) is None:
        return None if asked is None else list(asked)
    own = list(await session.scalars(select(row.id).where(row.organization_id == organization_id)))
    return own if asked is None else [project_id for project_id in asked if project_id in set(own)]


async def spent_nanos(
    session: AsyncSession, organization_id: str, project_id: str | None, since_s: int
) -> int:
    """What requests of the project, or of all the organization's projects, have cost since then, as far as it is
    written down."""
    row, project = UsageRow, tables.Project
    query = select(func.coalesce(func.sum(row.cost_nanos), 0)).where(row.created_at_s >= since_s)
    if project_id is not None:
        query = query.where(row.project_id == project_id)
    else:
        own = select(project.id).where(project.organization_id == organization_id)
        query = query.where(row.project_id.in_(own))
    return int((await session.execute(query)).scalar_one())


def period_start_s(period: str, now_s: int) -> int:
    """Of the calendar month in UTC; 0 for "total"."""
    if period == "total":
        return 0
    month = datetime.fromtimestamp(now_s, UTC).replace(day=1, hour=0, minute=0, second=0)
    return int(month.timestamp())
