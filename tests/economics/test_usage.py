"""Usage records: never waited for, never twice, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from stoa.economics import spill as spill_files
from stoa.economics.accounts import Account
from stoa.economics.records import UsageRecord
from stoa.economics.spill import list_spills, read_spill, write_spill
from stoa.economics.tables import UsageRow
from stoa.economics.usage import UsageWriter
from stoa.engine.usage import RequestUsage
from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, Scope


def record(n: int, project: str = "p", **more: object) -> UsageRecord:
    fields = {"prompt_tokens": 3, "completion_tokens": 2, "cost_nanos": 10, "created_at_s": 1000 + n}
    return UsageRecord(
        request_id=f"r{n}",
        project_id=project,
        key_id=None,
        **({"model": "m"} | fields | more),  # type: ignore[arg-type]
    )


class Switch:
    """A database that can be turned off."""

    def __init__(self, database: Database) -> None:
        self.inner = database
        self.on = True
        self.is_sqlite = database.is_sqlite

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        if not self.on:
            raise DatabaseUnavailable("off")
        async with self.inner.begin(scope) as session:
            yield session

    @asynccontextmanager
    async def read(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        if not self.on:
            raise DatabaseUnavailable("off")
        async with self.inner.read(scope) as session:
            yield session


def writer(database: Database | Switch, folder: Path, **more: object) -> UsageWriter:
    return UsageWriter(database, folder / "spill", flush_s=0.01, **more)  # type: ignore[arg-type]


async def count(database: Database) -> int:
    async with database.read(EVERY_PROJECT) as session:
        return int((await session.execute(select(func.count(UsageRow.request_id)))).scalar_one())


async def until(condition: object, limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_records_arrive_by_themselves(database: Database, tmp_path: Path) -> None:
    """Soon, in batches, each once although it is added twice."""
    usage = writer(database, tmp_path)
    await usage.start()
    for n in (*range(2500), 7, 8):
        usage.add(record(n))

    async def there() -> bool:
        return await count(database) == 2500 and not usage.pending

    await until(there)
    usage.add(record(8))
    await usage.close()
    assert await count(database) == 2500
    assert usage.healthy


async def test_all_that_was_measured_is_kept(database: Database, tmp_path: Path) -> None:
    """The row has what the engine said, whose it was, and the cost."""
    measured = RequestUsage(
        request_id="r", outcome="length", prompt_tokens=1, cached_tokens=2, completion_tokens=3, queue_ns=4,
        prefill_ns=5, decode_ns=6, compute_ns=7, kv_byte_ms=8, adapter_byte_ms=1 << 60,
    )  # fmt: skip
    usage = writer(database, tmp_path)
    await usage.start()
    usage.add(UsageRecord.of(measured, Account("p", "k", "m"), cost_nanos=9, created_at_s=10, adapter="a@1"))
    await usage.close()
    async with database.read(Scope("p")) as session:
        row = (await session.scalars(select(UsageRow))).one()
    assert (row.outcome, row.queue_ns, row.prefill_ns, row.decode_ns, row.compute_ns) == (
        "length",
        4,
        5,
        6,
        7,
    )
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (1, 2, 3)
    assert (row.kv_byte_ms, row.adapter_byte_ms, row.cost_nanos, row.created_at_s) == (8, 1 << 60, 9, 10)
    assert (row.project_id, row.key_id, row.model, row.adapter) == ("p", "k", "m", "a@1")


async def test_a_lost_database_is_waited_for(database: Database, tmp_path: Path) -> None:
    """Records stay in memory and `healthy` is false; when it is back they are written."""
    switch = Switch(database)
    usage = writer(switch, tmp_path)
    await usage.start()
    switch.on = False
    usage.add(record(1))

    async def noticed() -> bool:
        return not usage.healthy

    await until(noticed)
    assert usage.pending == 1
    switch.on = True

    async def healed() -> bool:
        return usage.healthy and not usage.pending

    await until(healed)
    assert await count(database) == 1
    await usage.close()


async def test_what_cannot_be_written_is_replayed_at_the_next_start(
    database: Database, tmp_path: Path
) -> None:
    """Exactly once, also if the process died between writing the rows and removing the file."""
    switch = Switch(database)
    switch.on = False
    usage = writer(switch, tmp_path)
    await usage.start()
    for n in range(3):
        usage.add(record(n))
    await usage.close()
    (path,) = list_spills(tmp_path / "spill")
    kept = path.read_bytes()
    for _ in range(2):
        again = writer(database, tmp_path)
        await again.start()
        await again.close()
        assert (await count(database), list_spills(tmp_path / "spill")) == (3, [])
        path.write_bytes(kept)


async def test_too_many_records_go_to_disk(database: Database, tmp_path: Path) -> None:
    """Memory stays bounded while the database is away; afterwards nothing is missing."""
    switch = Switch(database)
    switch.on = False
    usage = writer(switch, tmp_path, max_pending=10)
    await usage.start()
    for n in range(25):
        usage.add(record(n))

    async def spilled() -> bool:
        return not usage.pending

    await until(spilled)
    switch.on = True

    async def replayed() -> bool:
        return await count(database) == 25

    await until(replayed)
    await usage.close()


async def test_a_full_disk_loses_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither database nor disk: `close` and the log say how many, and the records are kept; it may be called again."""
    switch = Switch(database)
    switch.on = False
    usage = writer(switch, tmp_path)
    await usage.start()
    usage.add(record(1))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spill_files.os, "fsync", full)
        with capture_logs() as logs, pytest.raises(DatabaseUnavailable, match="1 usage records"):
            await usage.close(patience_s=0.02)
    (lost,) = [line for line in logs if line["log_level"] == "critical"]
    assert (lost["event"], lost["count"]) == ("usage records are lost if this process ends now", 1)
    assert (usage.pending, list((tmp_path / "spill").iterdir())) == (1, [])
    switch.on = True
    await usage.close()
    assert await count(database) == 1


async def test_a_record_that_no_database_takes_does_not_hold_up_others(
    database: Database, tmp_path: Path
) -> None:
    """It is put aside in a file, and the rest is written."""
    usage = writer(database, tmp_path)
    for n in range(5):
        usage.add(record(n, cost_nanos=1 << 70 if n == 3 else 1))
    assert await usage.flush()
    assert await count(database) == 4
    (path,) = list((tmp_path / "spill" / "refused").iterdir())
    assert [r["request_id"] for r in spill_raw(path)] == ["r3"]


def test_a_file_holds_whatever_a_record_says(tmp_path: Path) -> None:
    """Numbers of any size and text that is not Unicode spoil neither the file nor the records beside them."""
    odd = [record(1, cost_nanos=1 << 70, kv_byte_ms=-(1 << 64), model="m\ud800"), record(2)]
    found = read_spill(write_spill(tmp_path, odd))
    assert (found[0].cost_nanos, found[0].kv_byte_ms, found[0].model) == (1 << 70, -(1 << 64), "m\\ud800")
    assert found[1] == odd[1]


def spill_raw(path: Path) -> list[dict[str, object]]:
    import msgspec

    return msgspec.msgpack.decode(path.read_bytes())  # type: ignore[no-any-return]


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    """It is not read again and not deleted; half-written files are not taken for whole ones."""
    path = write_spill(tmp_path, [record(1)])
    assert read_spill(path) == [record(1)]
    path.write_bytes(path.read_bytes()[:-3])
    assert read_spill(path) == []
    assert [p.suffix for p in tmp_path.iterdir()] == [".bad"]
    (tmp_path / "x.tmp").write_bytes(b"")
    assert list_spills(tmp_path) == []
    assert read_spill(tmp_path / "gone.msgpack") == []


async def test_spent_counts_what_is_not_written_yet(database: Database, tmp_path: Path) -> None:
    """One project's cost since a moment, in the database and in memory."""
    usage = writer(database, tmp_path)
    for n in range(4):
        usage.add(record(n))
    await usage.flush()
    usage.add(record(9))
    usage.add(record(10, "other"))
    assert await usage.spent("p", 1002) == 30
    assert await usage.spent("nobody", 0) == 0
