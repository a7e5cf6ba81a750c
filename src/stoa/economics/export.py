"""Usage and ledger rows for other programs: CSV always, Parquet where pyarrow is installed.

Rows are read in chunks inside one transaction, so that a file of any length is one moment's truth and takes
little memory.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Select, case, select

from stoa.economics.tables import LedgerEntry, UsageRow
from stoa.errors import ConfigError, InvalidRequest
from stoa.storage.database import Database
from stoa.storage.scope import Scope

What = Literal["usage", "ledger"]
Rows = list[tuple[Any, ...]]
_CHUNK = 5000
_COLUMNS: dict[str, list[str]] = {
    "usage": [
        "created_at_s", "request_id", "project_id", "key_id", "model", "adapter", "endpoint", "service_class",
        "prompt_tokens", "cached_tokens", "completion_tokens", "queue_ns", "prefill_ns", "decode_ns",
        "compute_ns", "kv_byte_ms", "adapter_byte_ms", "outcome", "cost_nanos",
    ],
    "ledger": [
        "start_s", "session_id", "number", "project_id", "key_id", "model", "line_item", "amount_nanos",
        "quantity", "quantity_unit",
    ],
}  # fmt: skip
_QUANTITY_UNIT = case(
    (LedgerEntry.line_item.in_(("memory", "idle memory")), "byte-milliseconds"),
    (LedgerEntry.line_item.startswith("api "), "tokens"),
    else_="nanoseconds",
).label("quantity_unit")


def columns(what: What) -> list[str]:
    return list(_COLUMNS[what])


async def rows(
    database: Database, what: What, scope: Scope, start_s: int, end_s: int, *, chunk: int = _CHUNK
) -> AsyncIterator[Rows]:
    """Rows of [start_s, end_s) by time, at most `chunk` at once, with `columns(what)`. A project sees its own; what
    is nobody's only administrators see. Raises DatabaseUnavailable."""
    async with database.read(scope) as session:
        result = await session.stream(_query(what, scope, start_s, end_s).execution_options(yield_per=chunk))
        async for part in result.partitions(chunk):
            yield [tuple(row) for row in part]


async def csv_chunks(
    database: Database, what: What, scope: Scope, start_s: int, end_s: int
) -> AsyncIterator[str]:
    """A CSV file with a header, piece by piece."""
    yield _csv([tuple(columns(what))])
    async for part in rows(database, what, scope, start_s, end_s):
        yield _csv(part)


async def write_csv(
    database: Database, what: What, scope: Scope, start_s: int, end_s: int, path: Path
) -> int:
    """How many rows; `path` is there only if all of them are. Raises InvalidRequest if it cannot be written."""
    count = -1  # the header
    with _whole(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        async for text in csv_chunks(database, what, scope, start_s, end_s):
            file.write(text)
            count += text.count("\n")
    return count


async def write_parquet(
    database: Database, what: What, scope: Scope, start_s: int, end_s: int, path: Path
) -> int:
    """How many rows; `path` is there only if all of them are. Raises ConfigError without pyarrow, InvalidRequest
    if the file cannot be written."""
    arrow, parquet = import_arrow()
    schema = arrow.schema(
        [(c.key, arrow.int64() if _is_whole(c) else arrow.string()) for c in _attributes(what)]
    )
    count = 0
    with _whole(path) as beside, parquet.ParquetWriter(beside, schema) as file:
        async for part in rows(database, what, scope, start_s, end_s):
            arrays = [
                arrow.array(values, f.type) for values, f in zip(zip(*part, strict=True), schema, strict=True)
            ]
            file.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            count += len(part)
    return count


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place in the end, if nothing went wrong."""
    if not path.name:
        raise InvalidRequest(f"{path} is not the name of a file")
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidRequest(f"{path} cannot be written: {reason}") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def import_arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet: optional, and slow to import. Raises ConfigError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'stoa[parquet]'; CSV works without") from None
    return pyarrow, pyarrow.parquet


def _attributes(what: What) -> list[ColumnElement[Any]]:
    table = UsageRow if what == "usage" else LedgerEntry
    return [_QUANTITY_UNIT if name == "quantity_unit" else getattr(table, name) for name in _COLUMNS[what]]


def _is_whole(column: ColumnElement[Any]) -> bool:
    return isinstance(column.type, BigInteger)


def _query(what: What, scope: Scope, start_s: int, end_s: int) -> Select[Any]:
    time, order, project = (
        (UsageRow.created_at_s, UsageRow.request_id, UsageRow.project_id)
        if what == "usage"
        else (LedgerEntry.start_s, LedgerEntry.id, LedgerEntry.project_id)
    )
    query = select(*_attributes(what)).where(time >= start_s, time < end_s).order_by(time, order)
    return query if scope.project_id is None else query.where(project == scope.project_id)


def _csv(part: Sequence[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(part)
    return text.getvalue()
