"""The administrators' API on a real database behind the real edge, and the official client in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx
import pytest
from openai import AsyncOpenAI
from openai.resources.admin.organization import AsyncOrganization
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from stoa.errors import StoaError
from stoa.server.edge import Edge
from stoa.server.organization import routes
from stoa.server.problems import http_problem, stoa_problem
from stoa.storage.database import Database
from stoa.tenancy.authority import Authority
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.principal import DEFAULT_ORGANIZATION
from tests.tenancy.meters.clock import ManualClock


@dataclass(frozen=True)
class Administration:
    """As much of a service as the API needs."""

    office: Office | None
    database: Database | None
    max_body_bytes: int = 100_000


@dataclass
class House:
    """Two organizations in one service."""

    app: Starlette
    office: Office
    database: Database
    clock: ManualClock
    admin_key: str  # of the default organization
    other_key: str  # of an administrator of the other one
    other_id: str
    open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def http(self, key: str | None = None) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app),
            base_url="http://stoa/v1",
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
        )
        return await self.open.enter_async_context(client)

    async def official(self, key: str) -> AsyncOrganization:
        client = AsyncOpenAI(
            api_key="none",
            admin_api_key=key,
            base_url="http://stoa/v1",
            http_client=await self.http(),
            max_retries=0,
        )
        return (await self.open.enter_async_context(client)).admin.organization

    async def project_key(self, project_id: str, *scopes: str) -> str:
        """The secret of a new one."""
        new = await self.office.keys.create(
            DEFAULT_ORGANIZATION, project_id, actor="cli", name="k", scopes=scopes or ("all",)
        )
        return new.secret


@pytest.fixture
async def house(database: Database) -> AsyncIterator[House]:
    clock = ManualClock(2_000_000_000)  # after the defaults were made
    authority = Authority(database, clock=clock, write_uses_s=3600.0)
    office = open_office(database, clock=clock, changed=authority.invalidate)
    other = await office.organizations.create("other", actor="cli")
    keys = [
        (await office.keys.create(organization_id, None, actor="cli", name="root")).secret
        for organization_id in (DEFAULT_ORGANIZATION, other.id)
    ]
    app = Starlette(
        routes=routes(Administration(office, database), clock),
        middleware=[Middleware(Edge, authority=authority)],
        exception_handlers={StoaError: stoa_problem, HTTPException: http_problem},
    )
    found = House(app, office, database, clock, *keys, other.id)
    async with found.open:
        yield found
    await authority.close()


@pytest.fixture
async def admin(house: House) -> AsyncOrganization:
    return await house.official(house.admin_key)


@pytest.fixture
async def raw(house: House) -> httpx.AsyncClient:
    """What the official client cannot say."""
    return await house.http(house.admin_key)
