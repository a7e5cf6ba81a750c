"""Run by alembic, with the connection and transaction that `storage/migrate.py` has opened."""

from __future__ import annotations

from alembic import context

from stoa.storage.base import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite too: the transaction was begun by us
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
