"""The schema on disk and the schema in the code are one."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, inspect, text

from stoa.errors import DatabaseUnavailable
from stoa.storage.base import Base
from stoa.storage.database import Database
from stoa.storage.migrate import alembic_config, revisions, upgrade

for _name in ("stoa.tenancy.tables", "stoa.economics.tables", "stoa.storage.files", "stoa.batches.tables"):
    importlib.import_module(_name)


async def ask(database: Database, work: Any) -> Any:
    found: list[Any] = []
    await database.run(lambda connection: found.append(work(connection)))
    return found[0]


async def test_migrated_is_what_the_code_says(database: Database) -> None:
    """Tables, columns, types, constraints and indexes."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def compare(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)

    assert await ask(database, compare) == []


@pytest.mark.parametrize("revision", revisions()[:-1] or revisions())
async def test_rows_survive_an_upgrade_from_any_release(empty_url: str, revision: str) -> None:
    """Every table that was there then has its row afterwards."""
    database = Database(empty_url)
    await upgrade(database, revision)
    await database.run(fill)
    before = await ask(database, contents)
    assert all(before.values())
    await upgrade(database)
    after = await ask(database, contents)
    assert {name: after[name] for name in before} == before
    await database.close()


def fill(connection: Connection) -> None:
    """One more row in every table, of values that fit the columns' types."""
    from sqlalchemy import MetaData, Table, insert

    metadata = MetaData()
    metadata.reflect(connection)
    for table in metadata.sorted_tables:
        if table.name != "alembic_version":
            connection.execute(
                insert(table).values({c.name: _value(c) for c in Table(table.name, metadata).c})
            )


def _value(column: Any) -> Any:
    if column.foreign_keys:
        (key,) = column.foreign_keys
        return "default" if key.column.table.name in ("organizations", "projects") else "row"
    if isinstance(column.type, JSON):
        return {"row": 7}
    kind = column.type.python_type
    return (
        {"id": "row"}.get(column.name, "row") if kind is str else kind(7) if kind in (int, float) else kind()
    )


def contents(connection: Connection) -> dict[str, int]:
    names = [n for n in inspect(connection).get_table_names() if n != "alembic_version"]
    return {n: connection.execute(text(f'SELECT count(*) FROM "{n}"')).scalar_one() for n in names}


async def test_the_defaults_exist(database: Database) -> None:
    """One organization, and one project in it."""
    rows = await ask(
        database, lambda c: c.execute(text("SELECT id, organization_id, weight FROM projects")).all()
    )
    assert rows == [("default", "default", 1.0)]


async def test_upgrading_again_changes_nothing(database: Database) -> None:
    """At the newest revision there is nothing to do."""
    before = await ask(database, contents)
    await upgrade(database)
    assert await ask(database, contents) == before


async def test_processes_that_start_together(empty_url: str) -> None:
    """One upgrades, the others find it done."""
    several = [Database(empty_url) for _ in range(4)]
    await asyncio.gather(*(upgrade(d) for d in several))
    counts = await ask(several[0], contents)
    assert (counts["projects"], counts["organizations"]) == (1, 1)
    for database in several:
        await database.close()


async def test_a_newer_schema_is_refused(database: Database) -> None:
    """By a Stoa that does not know it."""
    await database.run(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    with pytest.raises(DatabaseUnavailable, match="newer"):
        await upgrade(database)


async def test_a_failed_upgrade_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half of the tables nor a revision."""
    from alembic import op

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("no")

    database = Database(empty_url)
    with monkeypatch.context() as patched:
        patched.setattr(op, "bulk_insert", fail)
        with pytest.raises(RuntimeError):
            await upgrade(database)
    assert await ask(database, contents) == {}
    await upgrade(database)
    assert (await ask(database, contents))["projects"] == 1
    await database.close()


async def test_the_folder_of_a_file_is_made(tmp_path: Path) -> None:
    """And where that is not possible, the error says so."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/a/b/stoa.db")
    await upgrade(database)
    assert (tmp_path / "a" / "b" / "stoa.db").exists()
    await database.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot be made"):
        await upgrade(Database(f"sqlite+aiosqlite:///{tmp_path}/file/stoa.db"))


async def test_no_alembic_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    """It is slow to import, and most starts do not need it."""
    program = (
        "import asyncio, sys; from stoa.storage.database import Database; from stoa.storage.migrate import upgrade\n"
        f"asyncio.run(upgrade(Database('sqlite+aiosqlite:///{tmp_path}/stoa.db'))); print('alembic' in sys.modules)"
    )
    said = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout  # noqa: ASYNC221
        for _ in range(2)
    ]
    assert [s.split()[-1] for s in said] == ["True", "False"]


def test_revisions_are_one_chain() -> None:
    """In the order of their files' numbers."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config())
    chain = [r.revision for r in script.walk_revisions()]
    assert chain[::-1] == revisions()
