"""Prices, usage and the ledger, as rows. Money in nano-dollars, memory in byte-milliseconds of the pool."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from stoa.storage.base import Base, BigId, ProjectOwned


class Price(Base):
    """What `unit` of `item` costs in [valid_from_s, valid_to_s); `valid_to_s` None: until further notice."""

    __tablename__ = "prices"
    __table_args__ = (UniqueConstraint("item", "valid_from_s", name="uq_prices_item_valid_from_s"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    item: Mapped[str] = mapped_column(String(256))
    unit: Mapped[str] = mapped_column(String(32))
    amount_nanos: Mapped[int] = mapped_column(BigInteger)
    valid_from_s: Mapped[int] = mapped_column(BigInteger)
    valid_to_s: Mapped[int | None] = mapped_column(BigInteger)
    note: Mapped[str] = mapped_column(String(1000), default="")
    created_at_s: Mapped[int] = mapped_column(BigInteger)


class UsageRow(ProjectOwned, Base):
    """One finished request. `cost_nanos` is what counts against a budget."""

    __tablename__ = "usage"
    __table_args__ = (
        Index("ix_usage_project_id_created_at_s", "project_id", "created_at_s"),
        Index("ix_usage_created_at_s", "created_at_s"),
    )

    project_id: Mapped[str] = mapped_column(String(64))  # in an index with the time, none of its own
    request_id: Mapped[str] = mapped_column(String(160), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(512))
    adapter: Mapped[str] = mapped_column(String(256))  # name@version, or ""
    endpoint: Mapped[str] = mapped_column(String(32))  # completions, embeddings
    service_class: Mapped[str] = mapped_column(String(16))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    queue_ns: Mapped[int] = mapped_column(BigInteger)
    prefill_ns: Mapped[int] = mapped_column(BigInteger)
    decode_ns: Mapped[int] = mapped_column(BigInteger)
    compute_ns: Mapped[int] = mapped_column(BigInteger)
    kv_byte_ms: Mapped[int] = mapped_column(BigInteger)
    adapter_byte_ms: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str] = mapped_column(String(16))
    cost_nanos: Mapped[int] = mapped_column(BigInteger)
    created_at_s: Mapped[int] = mapped_column(BigInteger)


class LedgerSession(Base):
    """One life of one engine. Its time is booked without gap from `started_ns` to `booked_ns`."""

    __tablename__ = "ledger_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    node: Mapped[str] = mapped_column(String(256), index=True)
    machine: Mapped[str] = mapped_column(String(256))
    milliwatts: Mapped[int] = mapped_column(BigInteger)
    memory_ppm: Mapped[int] = mapped_column(BigInteger)  # share of the price that memory bears, millionths
    pool_bytes: Mapped[int] = mapped_column(BigInteger)
    started_ns: Mapped[int] = mapped_column(BigInteger)  # the origin that amounts telescope from
    booked_ns: Mapped[int] = mapped_column(BigInteger)
    lost_count: Mapped[int] = mapped_column(BigInteger, default=0)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger)


class LedgerInterval(Base):
    """Time that was booked. `number` is the engine's; lost time counts down from -1."""

    __tablename__ = "ledger_intervals"

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    start_ns: Mapped[int] = mapped_column(BigInteger)
    end_ns: Mapped[int] = mapped_column(BigInteger)
    total_nanos: Mapped[int] = mapped_column(BigInteger)


class LedgerEntry(Base):
    """A part of an interval's total. `project_id` None: idle or lost, nobody's.

    `quantity`: nanoseconds for compute, idle compute and lost; byte-milliseconds for memory and idle memory.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index("ix_ledger_entries_session_id_number", "session_id", "number"),
        Index("ix_ledger_entries_project_id_start_s", "project_id", "start_s"),
        Index("ix_ledger_entries_start_s", "start_s"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    session_id: Mapped[str] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(BigInteger)
    project_id: Mapped[str | None] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(64))
    model: Mapped[str | None] = mapped_column(String(512))
    line_item: Mapped[str] = mapped_column(String(32))
    amount_nanos: Mapped[int] = mapped_column(BigInteger)
    quantity: Mapped[int] = mapped_column(BigInteger)
    start_s: Mapped[int] = mapped_column(BigInteger)
