"""Prices, usage, and the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _prices()
    _usage()
    _ledger()


def downgrade() -> None:
    for table in ("ledger_entries", "ledger_intervals", "ledger_sessions", "usage", "prices"):
        op.drop_table(table)


def _big(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _prices() -> None:
    op.create_table(
        "prices",
        sa.Column("id", _ID, nullable=False),
        _text("item", 256),
        _text("unit", 32),
        _big("amount_nanos"),
        _big("valid_from_s"),
        _big("valid_to_s", nullable=True),
        _text("note", 1000),
        _big("created_at_s"),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
        sa.UniqueConstraint("item", "valid_from_s", name="uq_prices_item_valid_from_s"),
    )


def _usage() -> None:
    counted = ("prompt_tokens", "cached_tokens", "completion_tokens")
    timed = ("queue_ns", "prefill_ns", "decode_ns", "compute_ns", "kv_byte_ms", "adapter_byte_ms")
    op.create_table(
        "usage",
        _text("project_id", 64),
        _text("request_id", 160),
        _text("key_id", 64, nullable=True),
        _text("model", 512),
        _text("adapter", 256),
        _text("endpoint", 32),
        _text("service_class", 16),
        *[_big(name) for name in (*counted, *timed)],
        _text("outcome", 16),
        _big("cost_nanos"),
        _big("created_at_s"),
        sa.PrimaryKeyConstraint("request_id", name="pk_usage"),
    )
    op.create_index("ix_usage_project_id_created_at_s", "usage", ["project_id", "created_at_s"])
    op.create_index("ix_usage_created_at_s", "usage", ["created_at_s"])


def _ledger() -> None:
    op.create_table(
        "ledger_sessions",
        _text("id", 64),
        _text("node", 256),
        _text("machine", 256),
        *[_big(name) for name in ("milliwatts", "memory_ppm", "pool_bytes", "started_ns", "booked_ns")],
        _big("lost_count"),
        _big("ended_ns", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_sessions"),
    )
    op.create_index("ix_ledger_sessions_node", "ledger_sessions", ["node"])
    op.create_table(
        "ledger_intervals",
        _text("session_id", 64),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        *[_big(name) for name in ("start_ns", "end_ns", "total_nanos")],
        sa.PrimaryKeyConstraint("session_id", "number", name="pk_ledger_intervals"),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", _ID, nullable=False),
        _text("session_id", 64),
        _big("number"),
        _text("project_id", 64, nullable=True),
        _text("key_id", 64, nullable=True),
        _text("model", 512, nullable=True),
        _text("line_item", 32),
        *[_big(name) for name in ("amount_nanos", "quantity", "start_s")],
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entries"),
    )
    op.create_index("ix_ledger_entries_session_id_number", "ledger_entries", ["session_id", "number"])
    op.create_index("ix_ledger_entries_project_id_start_s", "ledger_entries", ["project_id", "start_s"])
    op.create_index("ix_ledger_entries_start_s", "ledger_entries", ["start_s"])
