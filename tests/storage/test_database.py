"""Transactions, and a database that is lost."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from stoa.errors import ConfigError, Conflict, DatabaseUnavailable
from stoa.storage.database import Database, database_url
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.tables import Organization, Project


def organization(name: str) -> Organization:
    return Organization(id=name, name=name, created_at=1, version=1)


async def count(database: Database) -> int:
    async with database.read() as session:
        return await session.scalar(select(func.count()).select_from(Organization)) or 0


async def test_a_transaction_is_kept_whole(database: Database) -> None:
    """What was written is there afterwards."""
    async with database.begin() as session:
        session.add_all([organization("a"), organization("b")])
    assert await count(database) == 3
    assert database.healthy


async def test_an_error_takes_everything_back(database: Database) -> None:
    """Whatever raised it, and the database is not blamed."""

    async def fail() -> None:
        async with database.begin() as session:
            session.add(organization("a"))
            await session.flush()
            raise KeyError("x")

    with pytest.raises(KeyError):
        await fail()
    with pytest.raises(IntegrityError):
        async with database.begin() as session:
            session.add_all([organization("a"), organization("default")])
    assert await count(database) == 1
    assert database.healthy


async def test_a_row_changed_meanwhile_is_a_conflict(database_url: str) -> None:
    """Of two who read the same version, one writes."""
    here = Database(database_url)
    read = asyncio.Event()

    async def rename(name: str, wait: bool) -> str:
        async with here.begin() as session:
            row = await session.get(Organization, "default")
            assert row is not None
            read.set()
            if wait:
                await asyncio.sleep(0.2)
            row.name = name
        return name

    if here.is_sqlite:  # they queue up: the second one reads what the first has written
        assert await asyncio.gather(rename("a", True), rename("b", False)) == ["a", "b"]
    else:
        results = await asyncio.gather(rename("a", True), rename("b", False), return_exceptions=True)
        assert results[1] == "b"
        assert isinstance(results[0], Conflict)
    await here.close()


async def test_many_writers_at_once_all_get_through(database: Database) -> None:
    """None is told that the database is locked, though each reads before it writes."""

    async def add(i: int) -> None:
        async with database.begin() as session:
            await session.scalar(select(func.count()).select_from(Organization))
            session.add(organization(f"o{i}"))

    await asyncio.gather(*(add(i) for i in range(20)))
    assert await count(database) == 21


async def test_an_unreachable_database_is_unavailable(tmp_path: Path) -> None:
    """And the database is not healthy until a transaction reaches it again."""
    for url in (
        f"sqlite+aiosqlite:///{tmp_path}/none/stoa.db",
        f"postgresql+asyncpg://postgres@/x?host={tmp_path}",
        "postgresql+asyncpg://postgres@127.0.0.1:1/x",
    ):
        database = Database(url, timeout_s=1)
        for door in (database.begin, database.read):
            with pytest.raises(DatabaseUnavailable):
                async with door(EVERY_PROJECT) as session:
                    await session.execute(text("SELECT 1"))
        assert not database.healthy
        await database.close()


async def test_a_database_that_comes_back_is_healthy(tmp_path: Path) -> None:
    """As soon as a transaction got through."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/later/stoa.db")
    with pytest.raises(DatabaseUnavailable):
        async with database.read(EVERY_PROJECT) as session:
            await session.execute(text("SELECT 1"))
    (tmp_path / "later").mkdir()
    async with database.read(EVERY_PROJECT) as session:
        await session.execute(text("SELECT 1"))
    assert database.healthy
    await database.close()


async def test_a_locked_database_is_unavailable(tmp_path: Path, sqlite_template: Path) -> None:
    """To writers after the wait, not to readers."""
    file = tmp_path / "stoa.db"
    shutil.copy(sqlite_template, file)
    database = Database(f"sqlite+aiosqlite:///{file}", timeout_s=0.1)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable):
        async with database.begin() as session:
            session.add(organization("a"))
    assert not database.healthy
    assert await count(database) == 1
    other.close()
    async with database.begin() as session:
        session.add(organization("a"))
    assert database.healthy
    await database.close()


async def test_a_new_file_that_somebody_holds_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself does not wait when the first switch to WAL finds the file locked."""
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asyncio.get_running_loop().call_later(0.1, other.execute, "COMMIT")
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}")
    async with database.begin(EVERY_PROJECT) as session:
        assert (await session.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
    await database.close()
    other.close()


async def test_a_full_disk_is_unavailable(tmp_path: Path, sqlite_template: Path) -> None:
    """What was begun is taken back."""
    file = tmp_path / "stoa.db"
    shutil.copy(sqlite_template, file)
    database = Database(f"sqlite+aiosqlite:///{file}")
    async with database.begin(EVERY_PROJECT) as session:  # of the one connection
        await session.execute(text("PRAGMA max_page_count = 1"))
    with pytest.raises(DatabaseUnavailable):
        async with database.begin() as session:
            session.add_all([organization(f"{'x' * 50}{i}") for i in range(2000)])
    assert await count(database) == 1
    await database.close()


async def test_a_server_that_ends_connections_is_unavailable_once(
    database: Database, request: pytest.FixtureRequest
) -> None:
    """The next transaction has a new connection."""
    if database.is_sqlite:
        pytest.skip("SQLite has no server")
    with pytest.raises(DatabaseUnavailable):
        async with database.begin(EVERY_PROJECT) as session:
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert not database.healthy
    assert await count(database) == 1
    assert database.healthy


async def test_our_own_mistakes_are_not_outages(database: Database) -> None:
    """A table that is not there, a value that does not fit: the database is fine."""
    with pytest.raises(DBAPIError):
        async with database.begin(EVERY_PROJECT) as session:
            await session.execute(text("SELECT * FROM nothing"))
    with pytest.raises((DBAPIError, OverflowError)):
        async with database.begin(EVERY_PROJECT) as session:
            await session.execute(update(Project).values(created_at=1 << 70))
    assert database.healthy


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "sqlite+aiosqlite:////home/x/stoa.db"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("postgresql://u:p@h/n", "postgresql+asyncpg://u:p@h/n"),
        ("postgres://u:p@h:5/n?ssl=require", "postgresql+asyncpg://u:p@h:5/n?ssl=require"),
    ],
)
def test_a_url_gets_its_driver(given: str, used: str) -> None:
    """Nothing given is a file under the home."""
    assert database_url(given, Path("/home/x")) == used


@pytest.mark.parametrize(
    "url", ["x", "mysql://h/n", "sqlite://", "sqlite:///:memory:", "postgresql://h:port/n"]
)
def test_other_urls_are_refused(url: str) -> None:
    """By the name of the setting."""
    with pytest.raises(ConfigError) as caught:
        database_url(url, Path("/home/x"))
    assert caught.value.param == "db"


def test_a_password_is_kept() -> None:
    """With the signs that a URL escapes."""
    assert "p%40ss" in database_url("postgresql://u:p%40ss@h/n", Path())


def test_sqlite_errors_are_sorted_by_their_code() -> None:
    """A missing table is not a missing disk."""
    from stoa.storage.database import _is_outage

    missing, full = sqlite3.OperationalError("no such table"), sqlite3.OperationalError("disk is full")
    missing.sqlite_errorcode, full.sqlite_errorcode = sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FULL
    assert not _is_outage(OperationalError("", {}, missing))
    assert _is_outage(OperationalError("", {}, full))


async def test_a_deleted_file_is_unavailable(tmp_path: Path, sqlite_template: Path) -> None:
    """Writing to a file that is no longer there would seem to work; a new one in its place is another database."""
    file = tmp_path / "stoa.db"
    shutil.copy(sqlite_template, file)
    database = Database(f"sqlite+aiosqlite:///{file}")
    async with database.begin(EVERY_PROJECT) as session:
        await session.execute(text("SELECT 1"))
    file.unlink()
    with pytest.raises(DatabaseUnavailable):
        async with database.begin(EVERY_PROJECT):
            pass
    shutil.copy(sqlite_template, file)
    with pytest.raises(DatabaseUnavailable):
        async with database.begin(EVERY_PROJECT):
            pass
    assert not database.healthy
    await database.close()
