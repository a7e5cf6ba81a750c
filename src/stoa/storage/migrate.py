"""Bring the schema to the newest revision, inside the process that needs it.

Revisions lie in `migrations/versions`, one file each, `NNNN_what.py`, and follow each other in that order. Two
processes that start together do not get in each other's way: one upgrades, the other waits and finds it done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import make_url

from stoa.errors import DatabaseUnavailable
from stoa.storage.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger()
_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x53746F61  # any number, the same in every process


def revisions() -> list[str]:
    """All that there are, oldest first: "0001", …"""
    return sorted(path.name[:4] for path in (_FOLDER / "versions").glob("[0-9][0-9][0-9][0-9]_*.py"))


async def upgrade(database: Database, revision: str = "head") -> None:
    """To `revision`; nothing is lost on the way, and a failure leaves the schema as it was.

    Raises DatabaseUnavailable also if the schema is of a newer Stoa.
    """
    if database.is_sqlite and (file := make_url(database.url).database):
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(f"the folder of {file} cannot be made: {error.strerror}") from error
    at: list[str | None] = []
    await database.run(lambda connection: at.append(_current(connection)))
    known = revisions()
    if at[0] is not None and at[0] not in known:
        raise DatabaseUnavailable(
            f"the database's schema {at[0]} is newer than this Stoa, which knows {known[-1]}; upgrade Stoa"
        )
    if at[0] == (known[-1] if revision == "head" else revision):
        return
    await database.run(lambda connection: _upgrade(connection, revision))
    if at[0] is not None:
        log.info("the database's schema is upgraded", was=at[0], now=revision)


def alembic_config() -> Config:
    """For `alembic` itself, when a revision is written."""
    from alembic.config import Config  # a hundred modules, for nothing on most starts

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
