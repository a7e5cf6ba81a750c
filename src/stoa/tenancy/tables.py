"""The tables of tenancy. Times are Unix seconds, money nano-dollars (10⁻⁹ USD).

What an organization and its projects both can have (budget, alerts, keys, audit) has the organization's id, and
the project's where it is a project's. Rows with a `version` are edited by people: a change of one that was
changed meanwhile is a Conflict.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Integer, String, event
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from stoa.storage.base import Base, BigId, OrganizationOwned, ProjectItself, ProjectOwned


class _Edited:
    version: Mapped[int] = mapped_column(Integer, default=1)

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:  # noqa: N805
        return {"version_id_col": cls.version}


class Organization(_Edited, Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Project(_Edited, ProjectItself, Base):
    __tablename__ = "projects"

    organization_id: Mapped[str] = mapped_column(String(64), ForeignKey("organizations.id"), index=True)
    name: Mapped[str] = mapped_column(String(256))
    weight: Mapped[float] = mapped_column(Float, default=1.0)
    created_at: Mapped[int] = mapped_column(BigInteger)
    archived_at: Mapped[int | None] = mapped_column(BigInteger)


class ServiceAccount(_Edited, ProjectOwned, Base):
    __tablename__ = "service_accounts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)


class ApiKey(_Edited, OrganizationOwned, Base):
    """A key of a project, or an administrator's (without one). Only hashes of secrets are kept. For a while after
    a rotation, `previous_sha256` is good too."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(256))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    previous_sha256: Mapped[str | None] = mapped_column(String(64), unique=True)
    previous_until: Mapped[int | None] = mapped_column(BigInteger)
    redacted: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    service_account_id: Mapped[str | None] = mapped_column(
        String(64), ForeignKey("service_accounts.id"), index=True
    )
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class _LimitColumns:
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    concurrent_requests: Mapped[int | None] = mapped_column(BigInteger)


class ProjectLimits(_LimitColumns, _Edited, ProjectOwned, Base):
    __tablename__ = "project_limits"

    project_id: Mapped[str] = mapped_column(String(64), ForeignKey("projects.id"), primary_key=True)


class KeyLimits(_LimitColumns, _Edited, OrganizationOwned, Base):
    __tablename__ = "key_limits"

    key_id: Mapped[str] = mapped_column(String(64), ForeignKey("api_keys.id"), primary_key=True)


class Budget(_Edited, OrganizationOwned, Base):
    """`target`: "project/ID" or "organization/ID": each has one budget at most."""

    __tablename__ = "budgets"

    target: Mapped[str] = mapped_column(String(80), primary_key=True)
    period: Mapped[str] = mapped_column(String(16))
    hard_nanos: Mapped[int] = mapped_column(BigInteger)


class SpendAlert(_Edited, OrganizationOwned, Base):
    """Goes out once per period of the budget, when spending reaches the threshold."""

    __tablename__ = "spend_alerts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    threshold_nanos: Mapped[int] = mapped_column(BigInteger)
    webhook_url: Mapped[str | None] = mapped_column(String(2048))
    recipients: Mapped[list[str]] = mapped_column(JSON)
    subject_prefix: Mapped[str | None] = mapped_column(String(256))
    created_at: Mapped[int] = mapped_column(BigInteger)


class AuditEntry(OrganizationOwned, Base):
    """Rows are added and never changed. `number` is their order."""

    __tablename__ = "audit_entries"

    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    effective_at: Mapped[int] = mapped_column(BigInteger, index=True)
    type: Mapped[str] = mapped_column(String(64), index=True)
    actor: Mapped[str] = mapped_column(String(128), index=True)
    resource_id: Mapped[str] = mapped_column(String(128))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


@event.listens_for(AuditEntry, "before_update")
@event.listens_for(AuditEntry, "before_delete")
def _append_only(mapper: Any, connection: Any, entry: AuditEntry) -> None:
    raise AssertionError("the audit log is only added to")
