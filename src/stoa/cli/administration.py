"""What commands on the database share: which database it is, and how facts are printed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stoa.config import load_settings
from stoa.errors import InvalidRequest

if TYPE_CHECKING:
    from stoa.storage.database import Database
    from stoa.tenancy.checks import Keep
    from stoa.tenancy.office import Office

T = TypeVar("T")
ACTOR = "cli"  # who did it, in the audit log
Home = Annotated[str | None, typer.Option("--home", help="folder of all state")]
Db = Annotated[
    str | None,
    typer.Option("--db", help="database: sqlite:///FILE or postgresql://…; default: under the home"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Count = Annotated[str | None, typer.Option(metavar="N|none")]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def with_office(home: str | None, db: str | None, work: Callable[[Office], Awaitable[T]]) -> T:
    """As `on_database`. A running server notices within seconds."""
    from stoa.tenancy.office import open_office

    return on_database(home, db, lambda database: work(open_office(database)))


def on_database(home: str | None, db: str | None, work: Callable[[Database], Awaitable[T]]) -> T:
    """The result of `work` on the database that flags and settings name, brought up to date first."""
    from stoa.storage.database import Database, database_url
    from stoa.storage.migrate import upgrade
    from stoa.telemetry import configure_logging

    settings = load_settings({"home": home, "db": db})
    configure_logging("warning", settings.log_format)
    url = database_url(getattr(settings, "db", ""), settings.home_path)

    async def run() -> T:
        database = Database(url)
        try:
            await upgrade(database)
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def show(facts: dict[str, Any], as_json: bool) -> None:
    """One thing: a line per field (one for each of a list of things), or an object."""
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        things = isinstance(value, list) and value and isinstance(value[0], dict)
        for label, one in zip([name, *[""] * len(value)], value, strict=False) if things else [(name, value)]:
            print(f"{label.ljust(width)}  {_word(name, one)}")


def show_all(rows: Sequence[dict[str, Any]], as_json: bool, *, none: str) -> None:
    """Many things: a table, or an array; `none` is said if there are none."""
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print(none)
        return
    print(table([{name: _word(name, value) for name, value in row.items()} for row in rows]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns side by side, under the names of the first row's keys."""
    lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def parse_count(text: str | None, flag: str) -> int | Keep | None:
    """Not given: KEEP. "none": no limit. Raises InvalidRequest."""
    from stoa.tenancy.checks import KEEP, MAX_LIMIT

    if text is None:
        return KEEP
    if text == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or not 1 <= int(text) <= MAX_LIMIT:
        accepted = f"a whole number from 1 to {MAX_LIMIT}, none"
        raise InvalidRequest(f"{flag} is {text!r}; accepted: {accepted}", param=flag)
    return int(text)


def parse_span(text: str, flag: str) -> int:
    """90d, 12h, 30m, 45s, 2w: seconds. Raises InvalidRequest."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text, re.ASCII)
    if match is None:
        raise InvalidRequest(
            f"{flag} is {text!r}; accepted: a number and s, m, h, d or w, such as 90d", param=flag
        )
    return int(match[1]) * _UNITS_S[match[2]]


def in_future(span: str | None, flag: str) -> int | None:
    """Unix seconds. Raises InvalidRequest."""
    return None if span is None else int(time.time()) + parse_span(span, flag)


def _word(name: str, value: Any) -> str:
    """Times, by the field's name, in UTC; things without what they have not."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(_word(name, v) for v in value) or "-"
    if isinstance(value, dict):
        return " ".join(f"{k}={_word(k, v)}" for k, v in value.items() if v not in (None, []))
    if isinstance(value, int) and name.endswith(("_at", "_until")):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return str(value)
