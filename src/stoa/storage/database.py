"""Connections and transactions: SQLite (WAL) by default, PostgreSQL by URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import structlog
from sqlalchemy import Connection, NullPool, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm.exc import StaleDataError

from stoa.errors import ConfigError, Conflict, DatabaseUnavailable
from stoa.storage.scope import Scope, ScopedSession, set_scope

log = structlog.get_logger()
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
# Classes of SQLSTATE by which PostgreSQL says that it cannot serve now: connection, no resources, operator's
# intervention, system error, login refused, no such database; and a standby that takes no writes, and a deadlock.
_UNAVAILABLE = ("08", "53", "57", "58", "28", "3D", "25006", "40P01")
_SQLITE_ERROR = 1  # the statement is wrong, or speaks of a table that is not there: a bug, not an outage
_COMMAND_TIMEOUT_S = 30.0
_WAL_WAITS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 1.0)  # between tries to switch to WAL


def database_url(url: str, home: Path) -> str:
    """`url` with its async driver; empty: SQLite under `home`. Raises ConfigError."""
    if not url:
        return f"sqlite+aiosqlite:///{home / 'stoa.db'}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "db is not a URL; accepted: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME", param="db"
        ) from None
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None:
        raise ConfigError(
            f"db speaks of {parsed.get_backend_name()!r}; accepted: sqlite, postgresql", param="db"
        )
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigError("db names no file; accepted: sqlite:///FILE", param="db")
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


class Database:
    """One per process. `healthy` tells whether the last transaction reached the database."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        """`url` as `database_url` gives it. `timeout_s`: the wait for a lock (SQLite) or for a connection
        (PostgreSQL). Nothing is opened yet."""
        self.url = url
        self.healthy = True
        self._timeout_s = timeout_s
        self._engine = self._open(command_timeout_s=_COMMAND_TIMEOUT_S, pool_pre_ping=not self.is_sqlite)
        # The same pool; on SQLite its transactions take no lock.
        self._reading = self._engine.execution_options(stoa_read_only=True)
        self._file = make_url(url).database if self.is_sqlite else None
        self._opened: tuple[int, int] | None = None  # device and inode of `_file`
        # Who writes to SQLite waits here for its turn, and not in SQLite, which gives turns to whoever asks last.
        self._turn = asyncio.Lock() if self.is_sqlite else None
        self._sessions = async_sessionmaker(sync_session_class=ScopedSession, expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back on any error. On SQLite it holds the one write lock
        from its first statement on, so what it has read is still true when it writes.

        Raises DatabaseUnavailable if the database cannot be reached or written to, Conflict if a row with a
        version was changed by somebody else meanwhile.
        """
        async with self._transaction(self._engine, scope, read_only=False) as session:
            yield session

    @asynccontextmanager
    async def read(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        """As `begin`, for reading only: waits for no writer. Raises DatabaseUnavailable."""
        async with self._transaction(self._reading, scope, read_only=True) as session:
            yield session

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, scope: Scope | None, *, read_only: bool
    ) -> AsyncIterator[AsyncSession]:
        turn = contextlib.nullcontext() if read_only or self._turn is None else self._turn
        try:
            async with turn, self._sessions(bind=engine) as session:
                self._check_file()
                set_scope(session.sync_session, scope, read_only=read_only)
                async with session.begin():
                    yield session
            self.healthy = True
        except StaleDataError:
            raise Conflict("somebody else has changed this meanwhile; read it again") from None
        except Exception as error:
            if _is_outage(error):
                self._lost(error)
            raise

    def _check_file(self) -> None:
        """That SQLite's file is still the one that was opened: writing to a deleted one would seem to work. Raises
        FileNotFoundError."""
        if self._file is None:
            return
        try:
            stat = os.stat(self._file)
        except FileNotFoundError:
            if self._opened is None:
                return  # a new one is about to be made
            raise
        if self._opened is None:
            self._opened = (stat.st_dev, stat.st_ino)
        elif self._opened != (stat.st_dev, stat.st_ino):
            raise FileNotFoundError(f"{self._file} is another file now")

    async def run(self, work: Callable[[Connection], None]) -> None:
        """`work` in one transaction on a connection of its own, with no limit of time and outside any scope: for
        migrations. Raises DatabaseUnavailable."""
        engine = self._open(command_timeout_s=None, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(work)
        except Exception as error:
            if _is_outage(error):
                self._lost(error)
            raise
        finally:
            await engine.dispose()

    def _open(self, *, command_timeout_s: float | None, **more: Any) -> AsyncEngine:
        arguments: dict[str, Any] = {"timeout": self._timeout_s}
        if not self.is_sqlite:
            arguments["command_timeout"] = command_timeout_s
        engine = create_async_engine(self.url, connect_args=arguments, **more)
        if self.is_sqlite:
            event.listen(engine.sync_engine, "connect", _set_up_sqlite)
            event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _lost(self, error: Exception) -> NoReturn:
        if self.healthy:
            log.error("the database cannot be used", error=(str(error).splitlines() or [repr(error)])[0])
        self.healthy = False
        raise DatabaseUnavailable("the database cannot be used at the moment; try again later") from error

    async def close(self) -> None:
        try:
            await self._engine.dispose()
        except SQLAlchemyError as error:
            log.warning("closing the database failed", error=str(error))


def _is_outage(error: Exception) -> bool:
    """Whether the database is to blame, and not the statement. Drivers raise OSError when they cannot connect,
    and their own errors, which carry `sqlstate`, before SQLAlchemy wraps them."""
    if isinstance(error, OSError | PoolTimeout):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if (code := getattr(cause, "sqlite_errorcode", None)) is not None:
        return isinstance(error, OperationalError) and code & 0xFF != _SQLITE_ERROR
    if state := getattr(cause, "sqlstate", None):
        return str(state).startswith(_UNAVAILABLE)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(getattr(cause, "__cause__", None), ValueError):
        return False  # asyncpg's word for an argument that does not fit its column
    return isinstance(error, OperationalError | InterfaceError)


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # BEGIN comes from `_begin_sqlite`, not from the driver's guess
    cursor = connection.cursor()
    _switch_to_wal(connection, cursor)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _switch_to_wal(connection: Any, cursor: Any) -> None:
    """The first switch of a new file needs it alone, and SQLite does not wait for that: where several start together,
    all but one are told at once that it is locked."""
    for wait_s in _WAL_WAITS_S:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            connection.run_async(lambda _, wait_s=wait_s: asyncio.sleep(wait_s))
        else:
            return
    cursor.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that reads first and writes later would fail if another wrote in between: lock at once."""
    read_only = connection.get_execution_options().get("stoa_read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
