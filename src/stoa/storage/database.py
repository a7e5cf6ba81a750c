"""Connections and transactions: SQLite (WAL) by default, PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from stoa.errors import ConfigError, DatabaseUnavailable
from stoa.storage.scope import Scope, ScopedSession, set_scope

log = structlog.get_logger()
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


def database_url(url: str, home: Path) -> str:
    """`url` with its async driver; empty: SQLite under `home`. Raises ConfigError."""
    if not url:
        return f"sqlite+aiosqlite:///{home / 'stoa.db'}"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "db is not a URL; accepted: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME", param="db"
        ) from None
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None:
        raise ConfigError(
            f"db speaks of {parsed.get_backend_name()!r}; accepted: sqlite, postgresql", param="db"
        )
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


class Database:
    """One per process. `healthy` tells whether the last transaction reached the database."""

    def __init__(self, url: str) -> None:
        """`url` as `database_url` gives it. Nothing is opened yet."""
        self.url = url
        self.healthy = True
        self._engine = create_async_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if url.startswith("sqlite"):
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)
        self._sessions = async_sessionmaker(
            self._engine, sync_session_class=ScopedSession, expire_on_commit=False
        )

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @asynccontextmanager
    async def begin(self, scope: Scope | None = None) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back on any error. Raises DatabaseUnavailable if the
        database cannot be reached or written to."""
        try:
            async with self._sessions() as session:
                set_scope(session.sync_session, scope)
                async with session.begin():
                    yield session
            self.healthy = True
        except (OperationalError, InterfaceError, OSError) as error:
            self._lost(error)
        except DBAPIError as error:
            if error.connection_invalidated:
                self._lost(error)
            raise

    def _lost(self, error: Exception) -> None:
        if self.healthy:
            log.error("the database cannot be used", error=str(error).splitlines()[0])
        self.healthy = False
        raise DatabaseUnavailable("the database cannot be used at the moment; try again later") from error

    async def close(self) -> None:
        try:
            await self._engine.dispose()
        except SQLAlchemyError as error:
            log.warning("closing the database failed", error=str(error))


def _set_up_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
