"""/v1/organization/costs: dollars by day. A project's key with the scope usage.read is told of its own project.

Beyond OpenAI's: `spread_idle` divides what nobody used among those who used something.
"""

from __future__ import annotations

from typing import Any

from stoa.economics.buckets import COST_LIMITS
from stoa.economics.cost_report import CostFilter, cost_page
from stoa.server.organization.asking import Ask, Endpoint
from stoa.server.organization.query import query_reader
from stoa.server.organization.reach import wanted_projects
from stoa.server.organization.usage import SCOPE, BucketQuery, UsagePage
from stoa.storage.scope import EVERY_PROJECT, Scope

PATH = "/v1/organization/costs"


class CostsQuery(BucketQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    line_items: list[str] | None = None
    spread_idle: bool = False


_read_query = query_reader(CostsQuery)


async def costs(ask: Ask) -> dict[str, Any]:
    query = _read_query(ask.request)
    buckets = query.buckets(COST_LIMITS, ask.now())
    scope = Scope(ask.project_id)
    # To spread nobody's costs, the shares of all must be read; the report confines what it tells.
    async with ask.database.read(EVERY_PROJECT if query.spread_idle else scope) as session:
        project_ids = query.project_ids
        if ask.project_id is None:
            project_ids = await wanted_projects(session, ask.organization_id, project_ids)
        where = CostFilter(
            project_ids=project_ids,
            api_key_ids=query.api_key_ids,
            line_items=query.line_items,
            user_ids=query.user_ids,
        )
        return await cost_page(
            session,
            scope,
            buckets,
            group_by=query.group_by,
            where=where,
            spread_idle=query.spread_idle,
        )


ENDPOINTS = (Endpoint("get", PATH, "Costs in US dollars", costs, UsagePage, query=CostsQuery, scope=SCOPE),)
