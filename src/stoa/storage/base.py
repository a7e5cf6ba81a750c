"""What every table has in common."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import BigInteger, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER keys


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that migrations can speak of them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ProjectOwned:
    """A row that belongs to a project: statements that touch it are scoped, see `scope.py`."""

    project_id: Mapped[str] = mapped_column(String(64), index=True)


class OrganizationOwned(ProjectOwned):
    """A row of a project or, where `project_id` is NULL, of the whole organization. No project's scope sees
    the latter."""

    organization_id: Mapped[str] = mapped_column(String(64), index=True)
    project_id: Mapped[str | None] = mapped_column(  # type: ignore[assignment]
        String(64), index=True, nullable=True
    )


class ProjectItself:
    """The table of projects: in a project's scope, the one row of that `id`."""

    id: Mapped[str] = mapped_column(String(64), primary_key=True)


def new_id(prefix: str) -> str:
    """proj_…, key_…, svc_acct_…: 24 random hex digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def now_s() -> int:
    return int(time.time())
