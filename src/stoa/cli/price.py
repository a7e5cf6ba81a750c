"""`stoa price`: what machines, energy and other providers cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stoa.cli.administration import AsJson, Db, Home, on_database, table
from stoa.errors import InvalidPrice

app = typer.Typer(no_args_is_help=True, help="Set and list prices. Amounts are US dollars.")


@app.command("set")
def set_(
    item: Annotated[str, typer.Argument(help="machine:TYPE, energy, or api:MODEL:input|cached|output")],
    amount: Annotated[str, typer.Argument(help="USD per hour, kWh, or million tokens")],
    since: Annotated[str | None, typer.Option("--from", help="date or time, UTC; default: now")] = None,
    note: Annotated[str, typer.Option(help="where the price is from")] = "",
    home: Home = None,
    db: Db = None,
) -> None:
    """Set the price of ITEM from a date on; the price before it ends there."""
    from stoa.economics.money import format_usd
    from stoa.economics.prices import PriceBook, parse_time, when

    start_s = None if since is None else parse_time(since)
    span = on_database(home, db, lambda database: PriceBook(database).set_price(item, amount, start_s, note))
    print(f"{span.item}: {format_usd(span.amount_nanos)} USD per {span.unit} from {when(span.valid_from_s)}")


@app.command("list")
def list_(home: Home = None, db: Db = None, as_json: AsJson = False) -> None:
    """List all prices, past, present and future."""
    from dataclasses import asdict

    from stoa.economics.money import format_usd
    from stoa.economics.prices import PriceBook, when

    spans = list(on_database(home, db, lambda database: PriceBook(database).table()))
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
def load(path: Annotated[Path, typer.Argument(metavar="FILE.csv")], home: Home = None, db: Db = None) -> None:
    """Load prices from a CSV file: all of its rows or, if one is wrong, none."""
    from stoa.economics.prices import PriceBook

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidPrice(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidPrice(f"{path} cannot be read: it is not UTF-8") from None
    count = on_database(home, db, lambda database: PriceBook(database).load_csv(text))
    print(f"loaded {count} prices")
