"""`stoa price`: what machines, energy and other providers cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stoa.config import load_settings
from stoa.errors import InvalidPrice

if TYPE_CHECKING:
    from stoa.storage.database import Database

T = TypeVar("T")
app = typer.Typer(no_args_is_help=True, help="Set and list prices. Amounts are US dollars.")
Home = Annotated[str | None, typer.Option("--home", help="folder of all state")]


@app.command("set")
def set_(
    item: Annotated[str, typer.Argument(help="machine:TYPE, energy, or api:MODEL:input|cached|output")],
    amount: Annotated[str, typer.Argument(help="USD per hour, kWh, or million tokens")],
    since: Annotated[str | None, typer.Option("--from", help="date or time, UTC; default: now")] = None,
    note: Annotated[str, typer.Option(help="where the price is from")] = "",
    home: Home = None,
) -> None:
    """Set the price of ITEM from a date on; the price before it ends there."""
    from stoa.economics.money import format_usd
    from stoa.economics.prices import PriceBook, parse_time, when

    start_s = None if since is None else parse_time(since)
    span = on_database(home, lambda db: PriceBook(db).set_price(item, amount, start_s, note))
    print(f"{span.item}: {format_usd(span.amount_nanos)} USD per {span.unit} from {when(span.valid_from_s)}")


@app.command("list")
def list_(home: Home = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List all prices, past, present and future."""
    from dataclasses import asdict

    from stoa.economics.money import format_usd
    from stoa.economics.prices import PriceBook, when

    spans = list(on_database(home, lambda db: PriceBook(db).table()))
    if as_json:
        print(json.dumps([asdict(span) for span in spans]))
        return
    rows: list[dict[str, Any]] = [
        {
            "item": s.item,
            "USD": format_usd(s.amount_nanos),
            "per": s.unit,
            "from": when(s.valid_from_s),
            "to": "" if s.valid_to_s is None else when(s.valid_to_s),
            "note": s.note,
        }
        for s in spans
    ]
    print(table(rows) if rows else "no prices")


@app.command("load")
def load(path: Annotated[Path, typer.Argument(metavar="FILE.csv")], home: Home = None) -> None:
    """Load prices from a CSV file: all of its rows or, if one is wrong, none."""
    from stoa.economics.prices import PriceBook

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPrice(f"{path} cannot be read: {error}") from None
    count = on_database(home, lambda db: PriceBook(db).load_csv(text))
    print(f"loaded {count} prices")


def table(rows: list[dict[str, Any]]) -> str:
    """Columns side by side, under the names of the first row's keys."""
    lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def on_database(home: str | None, act: Callable[[Database], Awaitable[T]]) -> T:
    """The result of `act` on the database that the settings name, brought up to date first."""
    from stoa.storage.database import Database, database_url
    from stoa.storage.migrate import upgrade
    from stoa.telemetry import configure_logging

    settings = load_settings({"home": home})
    configure_logging("warning", settings.log_format)
    settings.home_path.mkdir(parents=True, exist_ok=True)
    database = Database(database_url(getattr(settings, "db", ""), settings.home_path))

    async def run() -> T:
        try:
            await upgrade(database)
            return await act(database)
        finally:
            await database.close()

    return asyncio.run(run())
