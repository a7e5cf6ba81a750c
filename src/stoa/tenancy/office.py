"""All that administrators can do, one noun each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stoa.storage.database import Database
from stoa.tenancy.audit import AuditLog
from stoa.tenancy.budgets import Budgets
from stoa.tenancy.desk import Desk, nobody
from stoa.tenancy.keys import Keys
from stoa.tenancy.limits import RateLimits
from stoa.tenancy.organizations import Organizations
from stoa.tenancy.projects import Projects
from stoa.tenancy.service_accounts import ServiceAccounts


@dataclass(frozen=True)
class Office:
    organizations: Organizations
    projects: Projects
    keys: Keys
    service_accounts: ServiceAccounts
    limits: RateLimits
    budgets: Budgets
    audit: AuditLog


def open_office(
    database: Database,
    *,
    clock: Callable[[], float] = time.time,
    changed: Callable[[str], None] = nobody,
) -> Office:
    """`changed`: `Authority.invalidate` of the same process, if it has one."""
    desk = Desk(database, clock=clock, changed=changed)
    return Office(
        organizations=Organizations(desk),
        projects=Projects(desk),
        keys=Keys(desk),
        service_accounts=ServiceAccounts(desk),
        limits=RateLimits(desk),
        budgets=Budgets(desk),
        audit=AuditLog(database),
    )
