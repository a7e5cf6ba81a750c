"""What the ledger holds, by bucket and by whom, in the shapes of OpenAI's costs API.

Spreading: what nobody used (idle, lost) is divided among the projects of its bucket in proportion to what they
used there themselves, each line item by largest remainder, so that nothing is made or lost; inside a project, in
the same way among its keys and models. A bucket that nobody used keeps it as nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Float, cast, false, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.economics.buckets import Page, page_json
from stoa.economics.purchases import LINE_ITEMS as PURCHASES
from stoa.economics.split import HOUR_NS, SECOND_NS, split
from stoa.economics.tables import LedgerEntry
from stoa.economics.usage_report import bucket_column
from stoa.errors import InvalidRequest
from stoa.storage.scope import Scope

GROUPS = ("project_id", "user_id", "line_item", "api_key_id", "api_source")  # what OpenAI's API knows
_COLUMNS: dict[str, ColumnElement[Any]] = {
    "project_id": LedgerEntry.project_id.expression,
    "api_key_id": LedgerEntry.key_id.expression,
    "model": LedgerEntry.model.expression,
    "line_item": LedgerEntry.line_item.expression,
}
_DIRECT = ("compute", "memory")
_MEMORY = ("memory", "idle memory")
_GIB_HOUR_BYTE_MS = (1 << 30) * (HOUR_NS // 10**6)


@dataclass(frozen=True)
class CostCell:
    """A sum of ledger entries. `groups` holds what was grouped by; `project_id` None there: nobody's. `quantity` as
    in the ledger, a float because sums over long times leave 64 bits."""

    bucket_s: int
    groups: dict[str, str | None]
    amount_nanos: int
    quantity: float

    def quantity_unit(self) -> tuple[float | None, str | None]:
        """In OpenAI's units, where one line item is meant."""
        item = self.groups.get("line_item")
        if item is None:
            return None, None
        if item in PURCHASES:
            return self.quantity, "tokens"
        if item in _MEMORY:
            return self.quantity / _GIB_HOUR_BYTE_MS, "gibibyte_hours"
        return self.quantity / SECOND_NS, "duration_seconds"


@dataclass(frozen=True)
class CostFilter:
    """None: all. There are no users, so `user_ids` finds nothing."""

    project_ids: Sequence[str] | None = None
    api_key_ids: Sequence[str] | None = None
    line_items: Sequence[str] | None = None
    user_ids: Sequence[str] | None = None


async def cost_page(
    session: AsyncSession,
    scope: Scope,
    page: Page,
    *,
    group_by: Sequence[str] = (),
    where: CostFilter | None = None,
    spread_idle: bool = False,
) -> dict[str, Any]:
    """The page as JSON values; `scope` says whose costs: one project's or everybody's. Raises InvalidRequest."""
    for name in group_by:
        if name not in GROUPS:
            raise InvalidRequest(f"group_by has {name!r}; accepted: {', '.join(GROUPS)}", param="group_by")
    by = [name for name in GROUPS if name in group_by and name in _COLUMNS]
    results: dict[int, list[dict[str, Any]]] = {}
    for cell in await cost_cells(session, scope, page, by=by, where=where, spread_idle=spread_idle):
        result = _result(cell, "api_source" in group_by)
        results.setdefault(cell.bucket_s, []).append(result)
    return page_json(page, results)


async def cost_cells(
    session: AsyncSession,
    scope: Scope,
    page: Page,
    *,
    by: Sequence[str] = (),
    where: CostFilter | None = None,
    spread_idle: bool = False,
) -> list[CostCell]:
    """Sums per bucket and `by` (project_id, api_key_id, model, line_item), in that order."""
    wanted = where or CostFilter()
    if not spread_idle:
        return await _sums(session, page, by, _conditions(scope, wanted))
    fine = [name for name in _COLUMNS if name in by or name in ("project_id", "line_item")]
    if wanted.api_key_ids is not None and "api_key_id" not in fine:
        fine.append("api_key_id")
    cells: list[CostCell] = []
    for _, bucket in groupby(await _sums(session, page, fine, []), key=lambda c: c.bucket_s):
        cells += spread(list(bucket))
    return regroup([c for c in cells if _matches(c, scope, wanted)], by)


def spread(cells: Sequence[CostCell]) -> list[CostCell]:
    """One bucket's cells, by project_id and line_item at least, with nobody's given to those who used something."""
    used = [c for c in cells if c.groups["project_id"] is not None]
    owners: dict[str, dict[tuple[tuple[str, str | None], ...], int]] = {}
    for cell in filter(_is_of_nodes, used):
        whose = tuple((k, v) for k, v in cell.groups.items() if k != "line_item")
        parts = owners.setdefault(str(cell.groups["project_id"]), {})
        parts[whose] = parts.get(whose, 0) + cell.amount_nanos
    projects = sorted(owners)
    weights = [sum(owners[p].values()) for p in projects]
    if not sum(weights):
        return list(cells)
    found = list(used)
    for cell in cells:
        if cell.groups["project_id"] is not None:
            continue
        for project, share in zip(projects, split(cell.amount_nanos, weights), strict=True):
            parts = owners[project]
            for whose, amount in zip(parts, split(share, list(parts.values())), strict=True):
                groups = {**dict(whose), "line_item": cell.groups["line_item"]}
                quantity = cell.quantity * parts[whose] / sum(weights)
                found.append(CostCell(cell.bucket_s, groups, amount, quantity))
    return found


def _is_of_nodes(cell: CostCell) -> bool:
    """Use of our own nodes: what remotes have taken is no reason to bear these nodes' idle time."""
    return cell.groups["line_item"] in _DIRECT and cell.groups["project_id"] is not None


async def _sums(
    session: AsyncSession, page: Page, by: Sequence[str], conditions: Sequence[ColumnElement[bool]]
) -> list[CostCell]:
    bucket = bucket_column(LedgerEntry.start_s, page.width_s)
    columns = {name: column for name, column in _COLUMNS.items() if name in by}
    query = (
        select(
            bucket,
            func.sum(LedgerEntry.amount_nanos),
            func.sum(cast(LedgerEntry.quantity, Float(53))),
            *[column.label(f"by_{name}") for name, column in columns.items()],
        )
        .where(LedgerEntry.start_s >= page.start_s, LedgerEntry.start_s < page.end_s, *conditions)
        .group_by(bucket, *columns.values())
        .order_by(bucket, *[column.nulls_first() for column in columns.values()])
    )
    return [
        CostCell(row[0], dict(zip(columns, row[3:], strict=True)), int(row[1]), float(row[2]))
        for row in await session.execute(query)
    ]


def _conditions(scope: Scope, where: CostFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if scope.project_id is not None:
        found.append(LedgerEntry.project_id == scope.project_id)
    for column, wanted in (
        (LedgerEntry.project_id, where.project_ids),
        (LedgerEntry.key_id, where.api_key_ids),
        (LedgerEntry.line_item, where.line_items),
    ):
        if wanted is not None:
            found.append(column.in_(wanted))
    if where.user_ids is not None:
        found.append(false())
    return found


def _matches(cell: CostCell, scope: Scope, where: CostFilter) -> bool:
    project = cell.groups["project_id"]
    return (
        scope.project_id in (None, project)
        and (where.project_ids is None or project in where.project_ids)
        and (where.api_key_ids is None or cell.groups["api_key_id"] in where.api_key_ids)
        and (where.line_items is None or cell.groups["line_item"] in where.line_items)
        and where.user_ids is None
    )


def regroup(cells: Sequence[CostCell], by: Sequence[str], *, whole: bool = False) -> list[CostCell]:
    """Sums of cells over what `by` leaves out; `whole`: and over all buckets."""
    found: dict[tuple[Any, ...], CostCell] = {}
    names = [name for name in _COLUMNS if name in by]
    first_s = min((c.bucket_s for c in cells), default=0)
    for cell in cells:
        groups = {name: cell.groups[name] for name in names}
        bucket_s = first_s if whole else cell.bucket_s
        key = (bucket_s, *groups.values())
        before = found.get(key)
        if before is None:
            found[key] = replace(cell, bucket_s=bucket_s, groups=groups)
        else:
            found[key] = replace(
                before,
                amount_nanos=before.amount_nanos + cell.amount_nanos,
                quantity=before.quantity + cell.quantity,
            )
    return [found[key] for key in sorted(found, key=lambda k: tuple((v is not None, v) for v in k))]


def _result(cell: CostCell, by_source: bool) -> dict[str, Any]:
    quantity, unit = cell.quantity_unit()
    return {
        "object": "organization.costs.result",
        "amount": {"value": cell.amount_nanos / 10**9, "currency": "usd"},
        "line_item": cell.groups.get("line_item"),
        "project_id": cell.groups.get("project_id"),
        "user_id": None,
        "api_key_id": cell.groups.get("api_key_id"),
        "api_source": "unlabeled" if by_source else None,
        "quantity": quantity,
        "quantity_unit": unit,
    }
