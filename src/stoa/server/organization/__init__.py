"""The administrators' API, /v1/organization, in the shapes of OpenAI's.

The official client's `client.admin.organization` works with it as it is. One file for each resource; `asking.py` says
who may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.routing import Route

from stoa.server.organization import (
    admin_api_keys,
    api_keys,
    audit_logs,
    costs,
    projects,
    rate_limits,
    service_accounts,
    spend,
    usage,
)
from stoa.server.organization.asking import Administered, Endpoint, make_routes

OPERATIONS: tuple[Endpoint, ...] = (
    *projects.ENDPOINTS,
    *api_keys.ENDPOINTS,
    *service_accounts.ENDPOINTS,
    *rate_limits.ENDPOINTS,
    *spend.ENDPOINTS,
    *admin_api_keys.ENDPOINTS,
    *audit_logs.ENDPOINTS,
    *usage.ENDPOINTS,
    *costs.ENDPOINTS,
)


def routes(service: Administered, clock: Callable[[], float] = time.time) -> list[Route]:
    """All under /v1/organization; none if the service has no office. `clock`: Unix seconds."""
    return make_routes(OPERATIONS, service, clock)


__all__ = ["OPERATIONS", "Administered", "Endpoint", "routes"]
