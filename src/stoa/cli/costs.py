"""`stoa costs`: what was spent, on whom."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stoa.cli.price import on_database, table
from stoa.errors import InvalidRequest

if TYPE_CHECKING:
    from stoa.economics.cost_report import CostCell
    from stoa.storage.database import Database

By = Literal["project", "key", "model", "line-item"]
_GROUPS = {
    "project": ["project_id"],
    "key": ["project_id", "api_key_id"],
    "model": ["model"],
    "line-item": ["line_item"],
}
_DAY_S = 86_400
_USUAL_DAYS = 30


def costs(
    since: Annotated[
        str | None, typer.Option("--from", help="date or time, UTC; default: 30 days ago")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="up to here; default: now")] = None,
    by: Annotated[By, typer.Option("--by", help="project, key, model or line-item")] = "project",
    spread_idle: Annotated[
        bool,
        typer.Option("--spread-idle", help="divide idle and lost time among who used something that day"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    csv: Annotated[Path | None, typer.Option(help="write the ledger's entries to this file instead")] = None,
    parquet: Annotated[Path | None, typer.Option(help="the same as Parquet; needs pyarrow")] = None,
    home: Annotated[str | None, typer.Option("--home", help="folder of all state")] = None,
) -> None:
    """Show what was spent, in US dollars, by project, key, model or line item."""
    start_s, end_s = _range(since, until)
    if csv is not None or parquet is not None:
        _export(home, start_s, end_s, csv, parquet)
        return
    cells = on_database(home, lambda db: _sums(db, start_s, end_s, _GROUPS[by], spread_idle))
    print(_json(cells, start_s, end_s) if as_json else _text(cells, _GROUPS[by]))


def _range(since: str | None, until: str | None) -> tuple[int, int]:
    from stoa.economics.prices import parse_time

    end_s = int(time.time()) + 1 if until is None else parse_time(until)
    start_s = max(end_s - _USUAL_DAYS * _DAY_S, 0) if since is None else parse_time(since)
    if start_s >= end_s:
        raise InvalidRequest("--to is not later than --from")
    return start_s, end_s


async def _sums(
    database: Database, start_s: int, end_s: int, by: list[str], spread_idle: bool
) -> list[CostCell]:
    """Over the whole time; idle is spread day by day."""
    from stoa.economics.buckets import Page
    from stoa.economics.cost_report import cost_cells, regroup
    from stoa.storage.scope import EVERY_PROJECT

    page = Page(start_s, end_s, _DAY_S, None)
    async with database.read(EVERY_PROJECT) as session:
        cells = await cost_cells(session, EVERY_PROJECT, page, by=by, spread_idle=spread_idle)
    return regroup(cells, by, whole=True)


def _json(cells: list[CostCell], start_s: int, end_s: int) -> str:
    results = [{**c.groups, "amount_nanos": c.amount_nanos} for c in cells]
    total = sum(c.amount_nanos for c in cells)
    return json.dumps({"start_time": start_s, "end_time": end_s, "total_nanos": total, "results": results})


def _text(cells: list[CostCell], by: list[str]) -> str:
    from stoa.economics.money import format_usd

    if not cells:
        return "no costs"
    total = sum(c.amount_nanos for c in cells)
    rows: list[dict[str, Any]] = [
        {
            **{name: c.groups[name] or "(nobody)" for name in by},
            "USD": format_usd(c.amount_nanos),
            "share": f"{c.amount_nanos / total:.1%}" if total else "",
        }
        for c in sorted(cells, key=lambda c: -c.amount_nanos)
    ]
    first, *others = by
    rows.append({first: "total", **dict.fromkeys(others, ""), "USD": format_usd(total), "share": ""})
    return table(rows)


def _export(home: str | None, start_s: int, end_s: int, csv: Path | None, parquet: Path | None) -> None:
    from stoa.economics.export import write_csv, write_parquet
    from stoa.storage.scope import EVERY_PROJECT

    async def write(database: Database) -> None:
        for path, save in ((csv, write_csv), (parquet, write_parquet)):
            if path is not None:
                count = await save(database, "ledger", EVERY_PROJECT, start_s, end_s, path)
                print(f"{path}: {count} entries")

    on_database(home, write)
