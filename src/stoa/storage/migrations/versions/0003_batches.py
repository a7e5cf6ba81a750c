"""Files and batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _files()
    _batches()
    _results()


def downgrade() -> None:
    for table in ("batch_results", "batches", "files"):
        op.drop_table(table)


def _big(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _files() -> None:
    op.create_table(
        "files",
        _text("project_id", 64),
        _text("id", 64),
        _text("filename", 512),
        _text("purpose", 32),
        _big("size_bytes"),
        _text("state", 16),
        _big("created_at"),
        _big("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    for column in ("project_id", "state", "expires_at"):
        op.create_index(f"ix_files_{column}", "files", [column])


def _batches() -> None:
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    op.create_table(
        "batches",
        _text("project_id", 64),
        _text("id", 64),
        _text("key_id", 64, nullable=True),
        _text("endpoint", 64),
        _text("input_file_id", 64),
        _text("completion_window", 16),
        _text("status", 16),
        sa.Column("labels", sa.JSON, nullable=True),
        _text("model", 512, nullable=True),
        sa.Column("errors", sa.JSON, nullable=True),
        _text("output_file_id", 64, nullable=True),
        _text("error_file_id", 64, nullable=True),
        _big("output_expires_after_s", nullable=True),
        _big("created_at"),
        _big("expires_at"),
        *[_big(f"{name}_at", nullable=True) for name in times],
        *[sa.Column(name, sa.Integer, nullable=False) for name in ("total", "completed", "failed")],
        *[_big(name) for name in ("input_tokens", "cached_tokens", "output_tokens")],
        _text("holder", 64, nullable=True),
        _big("held_until"),
        sa.Column("term", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    for column in ("project_id", "status"):
        op.create_index(f"ix_batches_{column}", "batches", [column])


def _results() -> None:
    op.create_table(
        "batch_results",
        _text("project_id", 64),
        _text("batch_id", 64),
        sa.Column("line", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_batch_results"),
    )
    op.create_index("ix_batch_results_project_id", "batch_results", ["project_id"])
