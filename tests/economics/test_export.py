"""Files for other programs: complete, in order, or not there."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from stoa.economics.export import columns, csv_chunks, rows, write_csv, write_parquet
from stoa.economics.records import UsageRecord
from stoa.economics.tables import LedgerEntry
from stoa.economics.usage import insert_new
from stoa.errors import ConfigError, InvalidRequest
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, Scope

T0 = 1_700_000_000


@pytest.fixture
async def filled(database: Database) -> Database:
    async with database.begin(EVERY_PROJECT) as session:
        records = [
            UsageRecord(
                request_id=f"r{n:02}", project_id="ab"[n % 2], key_id=None, model='a "b", c', created_at_s=T0 + n
            )
            for n in range(20)
        ]  # fmt: skip
        await insert_new(session, database.is_sqlite, records)
        session.add_all(
            LedgerEntry(
                session_id="s", number=n, project_id=p, key_id=None, model=None,
                line_item="memory" if p == "b" else "compute",
                amount_nanos=1 << 60, quantity=n, start_s=T0 + n,
            )
            for n, p in enumerate(["a", None, "b"])
        )  # fmt: skip
    return database


async def test_rows_come_in_chunks(filled: Database) -> None:
    """At most so many at once, in the order of time, from start to before the end."""
    parts = [part async for part in rows(filled, "usage", EVERY_PROJECT, T0 + 1, T0 + 9, chunk=3)]
    assert [len(p) for p in parts] == [3, 3, 2]
    assert [r[1] for p in parts for r in p] == [f"r{n:02}" for n in range(1, 9)]


async def test_csv(filled: Database, tmp_path: Path) -> None:
    """A header and a line per row; what is nobody's is empty."""
    path = tmp_path / "files" / "ledger.csv"
    path.parent.mkdir()
    assert await write_csv(filled, "ledger", EVERY_PROJECT, T0, T0 + 10, path) == 3
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == columns("ledger")
    assert [(r["project_id"], r["amount_nanos"]) for r in found] == [
        (p, str(1 << 60)) for p in ("a", "", "b")
    ]
    assert [r["quantity_unit"] for r in found] == ["nanoseconds", "nanoseconds", "byte-milliseconds"]
    assert os.listdir(path.parent) == ["ledger.csv"]


async def test_a_project_exports_its_own(filled: Database) -> None:
    """Of usage and of the ledger."""
    for what, count in (("usage", 10), ("ledger", 1)):
        text = "".join([part async for part in csv_chunks(filled, what, Scope("b"), T0, T0 + 99)])  # type: ignore[arg-type]
        found = list(csv.DictReader(text.splitlines()))
        assert [r["project_id"] for r in found] == ["b"] * count


async def test_parquet(filled: Database, tmp_path: Path) -> None:
    """Whole numbers stay whole, nothing is nothing."""
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "usage.parquet"
    assert await write_parquet(filled, "usage", EVERY_PROJECT, T0, T0 + 99, path) == 20
    table = parquet.read_table(path)
    assert table.column_names == columns("usage")
    assert table["created_at_s"].to_pylist() == [T0 + n for n in range(20)]
    assert table["key_id"].null_count == 20
    with pytest.raises(InvalidRequest, match=r"^/nope/x cannot be written: No such file or directory$"):
        await write_parquet(filled, "ledger", EVERY_PROJECT, T0, T0 + 99, Path("/nope/x"))
    assert await write_parquet(filled, "ledger", EVERY_PROJECT, T0, T0 + 99, path) == 3
    units = parquet.read_table(path)["quantity_unit"].to_pylist()
    assert units == ["nanoseconds", "nanoseconds", "byte-milliseconds"]


async def test_parquet_without_pyarrow(
    filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Says what to install, and leaves no file."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"stoa\[parquet\]"):
        await write_parquet(filled, "usage", EVERY_PROJECT, T0, T0 + 99, tmp_path / "x.parquet")
    assert "x.parquet" not in os.listdir(tmp_path)
