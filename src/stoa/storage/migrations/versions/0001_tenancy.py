"""Organizations, projects, keys, limits, budgets, audit; and the defaults that always exist."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Id = sa.String(64)


def upgrade() -> None:
    _create_owners()
    _create_keys()
    _create_limits()
    _create_budgets()
    _create_audit()
    _add_defaults()


def downgrade() -> None:
    for table in (
        "audit_entries", "spend_alerts", "budgets", "key_limits", "project_limits",
        "api_keys", "service_accounts", "projects", "organizations",
    ):  # fmt: skip
        op.drop_table(table)


def _key(table: str, column: str = "id") -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(column, name=f"pk_{table}")


def _refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")


def _version() -> sa.Column[int]:
    return sa.Column("version", sa.Integer(), nullable=False)


def _owner() -> list[sa.Column[str]]:
    return [
        sa.Column("organization_id", _Id, nullable=False),
        sa.Column("project_id", _Id, nullable=True),
    ]


def _index(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def _create_owners() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", _Id, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        _version(),
        _key("organizations"),
    )
    op.create_table(
        "projects",
        sa.Column("id", _Id, nullable=False),
        sa.Column("organization_id", _Id, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=True),
        _version(),
        _key("projects"),
        _refers("projects", "organization_id", "organizations.id"),
    )
    _index("projects", "organization_id")


def _create_keys() -> None:
    op.create_table(
        "service_accounts",
        sa.Column("id", _Id, nullable=False),
        sa.Column("project_id", _Id, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        _version(),
        _key("service_accounts"),
    )
    _index("service_accounts", "project_id")
    op.create_table(
        "api_keys",
        sa.Column("id", _Id, nullable=False),
        *_owner(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("previous_sha256", sa.String(64), nullable=True),
        sa.Column("previous_until", sa.BigInteger(), nullable=True),
        sa.Column("redacted", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("service_account_id", _Id, nullable=True),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        _version(),
        _key("api_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
        sa.UniqueConstraint("previous_sha256", name="uq_api_keys_previous_sha256"),
        _refers("api_keys", "service_account_id", "service_accounts.id"),
    )
    _index("api_keys", "organization_id", "project_id", "service_account_id")


def _create_limits() -> None:
    def limits() -> list[sa.Column[int]]:
        names = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
        return [sa.Column(name, sa.BigInteger(), nullable=True) for name in names]

    op.create_table(
        "project_limits",
        sa.Column("project_id", _Id, nullable=False),
        *limits(),
        _version(),
        _key("project_limits", "project_id"),
        _refers("project_limits", "project_id", "projects.id"),
    )
    op.create_table(
        "key_limits",
        sa.Column("key_id", _Id, nullable=False),
        *_owner(),
        *limits(),
        _version(),
        _key("key_limits", "key_id"),
        _refers("key_limits", "key_id", "api_keys.id"),
    )
    _index("key_limits", "organization_id", "project_id")


def _create_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("target", sa.String(80), nullable=False),
        *_owner(),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("hard_nanos", sa.BigInteger(), nullable=False),
        _version(),
        _key("budgets", "target"),
    )
    _index("budgets", "organization_id", "project_id")
    op.create_table(
        "spend_alerts",
        sa.Column("id", _Id, nullable=False),
        *_owner(),
        sa.Column("threshold_nanos", sa.BigInteger(), nullable=False),
        sa.Column("webhook_url", sa.String(2048), nullable=True),
        sa.Column("recipients", sa.JSON(), nullable=False),
        sa.Column("subject_prefix", sa.String(256), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        _version(),
        _key("spend_alerts"),
    )
    _index("spend_alerts", "organization_id", "project_id")


def _create_audit() -> None:
    op.create_table(
        "audit_entries",
        sa.Column(
            "number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("id", _Id, nullable=False),
        *_owner(),
        sa.Column("effective_at", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("resource_id", sa.String(128), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        _key("audit_entries", "number"),
        sa.UniqueConstraint("id", name="uq_audit_entries_id"),
    )
    _index("audit_entries", "organization_id", "project_id", "effective_at", "type", "actor")


def _add_defaults() -> None:
    now = int(time.time())
    organizations = sa.table("organizations", *map(sa.column, ("id", "name", "created_at", "version")))
    op.bulk_insert(organizations, [{"id": "default", "name": "Default", "created_at": now, "version": 1}])
    projects = sa.table(
        "projects", *map(sa.column, ("id", "organization_id", "name", "weight", "created_at", "version"))
    )
    row = {"id": "default", "organization_id": "default", "name": "Default", "weight": 1.0}
    op.bulk_insert(projects, [{**row, "created_at": now, "version": 1}])
