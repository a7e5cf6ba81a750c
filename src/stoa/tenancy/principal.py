"""Who is asking, with everything that a request needs to know of them: no more questions on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_PROJECT = "default"
DEFAULT_ORGANIZATION = "default"
ADMIN = "admin"  # the scope of admin keys: everything under /v1/organization


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True)
class Budget:
    """What a project may spend. Amounts in nano-dollars (10⁻⁹). `alerts`: amounts at which a warning goes out."""

    period: Literal["month", "total"] = "month"
    hard_nanos: int | None = None
    alerts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Principal:
    """A key that was found good, and the project and organization behind it.

    Admin keys have no project. `scopes`: what the key may do: "all", "model.request", "model.read", "adapter.write",
    "usage.read" …, or "admin".
    """

    organization_id: str
    project_id: str | None
    key_id: str | None  # None: the service is open, nobody showed a key
    scopes: frozenset[str]
    weight: float = 1.0  # the project's share under load
    key_limits: Limits = field(default_factory=Limits)
    project_limits: Limits = field(default_factory=Limits)
    budget: Budget | None = None
    organization_budget: Budget | None = None  # over all its projects together

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        return "all" in self.scopes or scope in self.scopes
