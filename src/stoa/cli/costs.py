"""`stoa costs`: what was spent, on whom."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.cli.administration import AsJson, Db, Home, on_database, table
from stoa.errors import InvalidRequest

if TYPE_CHECKING:
    from stoa.economics.cost_report import CostCell
    from stoa.storage.database import Database

_GROUPS = {
    "project": ["project_id"],
    "key": ["project_id", "api_key_id"],
    "model": ["model"],
    "line-item": ["line_item"],
}
_NAMES = {"project_id": "project_name", "api_key_id": "api_key_name"}
_DAY_S = 86_400
_USUAL_DAYS = 30
Names = dict[str, dict[str, str]]  # of what is grouped by, names by id


def costs(
    since: Annotated[
        str | None, typer.Option("--from", help="date or time, UTC; default: 30 days ago")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="up to here; default: now")] = None,
    by: Annotated[str, typer.Option("--by", metavar="|".join(_GROUPS), help="whose or what for")] = "project",
    spread_idle: Annotated[
        bool,
        typer.Option("--spread-idle", help="divide idle and lost time among who used something that day"),
    ] = False,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option(help="write the ledger's entries to this file instead")] = None,
    parquet: Annotated[Path | None, typer.Option(help="the same as Parquet; needs pyarrow")] = None,
    home: Home = None,
    db: Db = None,
) -> None:
    """Show what was spent, in US dollars, by project, key, model or line item."""
    from stoa.tenancy.checks import check_choice

    start_s, end_s = _range(since, until)
    groups = _GROUPS[check_choice(by, _GROUPS, "--by")]
    if csv is not None or parquet is not None:
        _export(home, db, start_s, end_s, csv, parquet)
        return

    async def work(database: Database) -> tuple[list[CostCell], Names]:
        return await _sums(database, start_s, end_s, groups, spread_idle), await _names(database, groups)

    cells, names = on_database(home, db, work)
    print(_json(cells, names, start_s, end_s) if as_json else _text(cells, names))


def _range(since: str | None, until: str | None) -> tuple[int, int]:
    from stoa.economics.prices import parse_time

    end_s = int(time.time()) + 1 if until is None else parse_time(until)
    start_s = max(end_s - _USUAL_DAYS * _DAY_S, 0) if since is None else parse_time(since)
    if start_s >= end_s:
        raise InvalidRequest(
            "--to is not later than --from" if until is not None else f"--from {since} is in the future"
        )
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


async def _names(database: Database, by: list[str]) -> Names:
    from stoa.tenancy.office import open_office
    from stoa.tenancy.principal import DEFAULT_ORGANIZATION

    office = open_office(database)
    sources = {"project_id": office.projects.names, "api_key_id": office.keys.names}
    return {name: await sources[name](DEFAULT_ORGANIZATION) for name in by if name in sources}


def _json(cells: list[CostCell], names: Names, start_s: int, end_s: int) -> str:
    results = [{**_groups(c, names), "amount_nanos": c.amount_nanos} for c in cells]
    total = sum(c.amount_nanos for c in cells)
    return json.dumps({"start_time": start_s, "end_time": end_s, "total_nanos": total, "results": results})


def _text(cells: list[CostCell], names: Names) -> str:
    from stoa.economics.money import format_usd

    if not cells:
        return "no costs"
    total = sum(c.amount_nanos for c in cells)
    rows: list[dict[str, Any]] = [
        {
            **{k: v or ("" if k in _NAMES.values() else "(nobody)") for k, v in _groups(c, names).items()},
            "USD": format_usd(c.amount_nanos),
            "share": f"{c.amount_nanos / total:.1%}" if total else "",
        }
        for c in sorted(cells, key=lambda c: -c.amount_nanos)
    ]
    first, *others = rows[0]
    rows.append({first: "total", **dict.fromkeys(others, ""), "USD": format_usd(total)})
    return table(rows)


def _groups(cell: CostCell, names: Names) -> dict[str, str | None]:
    """What the cell is of, each id with its name after it."""
    found: dict[str, str | None] = {}
    for group, value in cell.groups.items():
        found[group] = value
        if group in names:
            found[_NAMES[group]] = names[group].get(value or "")
    return found


def _export(
    home: str | None, db: str | None, start_s: int, end_s: int, csv: Path | None, parquet: Path | None
) -> None:
    from stoa.economics.export import import_arrow, write_csv, write_parquet
    from stoa.storage.scope import EVERY_PROJECT

    if parquet is not None:
        import_arrow()  # before anything is written

    async def write(database: Database) -> None:
        for path, save in ((csv, write_csv), (parquet, write_parquet)):
            if path is not None:
                count = await save(database, "ledger", EVERY_PROJECT, start_s, end_s, path)
                print(f"{path}: {count} entries")

    on_database(home, db, write)
