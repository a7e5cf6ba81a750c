"""Tenants in front of a fake replica: real database, keys, files and batches behind the real edge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI
from starlette.types import ASGIApp

from stoa.batches import Batches, BatchRunner
from stoa.server import create_app
from stoa.server.inside import Inside
from stoa.storage.database import Database
from stoa.storage.files import Files
from stoa.storage.objects import LocalObjects
from stoa.tenancy.authority import Authority
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.principal import DEFAULT_ORGANIZATION
from tests.server.conftest import make_service
from tests.server.fakes import FakeMetering, FakeReplica
from tests.tenancy.meters.clock import ManualClock


@dataclass
class Tenant:
    project_id: str
    key: str
    client: AsyncOpenAI


@dataclass
class House:
    app: ASGIApp
    office: Office
    database: Database
    files: Files
    batches: Batches
    replica: FakeReplica
    metering: FakeMetering
    clock: ManualClock
    red: Tenant
    blue: Tenant
    open: AsyncExitStack

    async def http(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app=self.app)
        client = httpx.AsyncClient(transport=transport, base_url="http://stoa/v1", headers=headers)
        return await self.open.enter_async_context(client)

    async def key(self, project_id: str, *scopes: str) -> str:
        new = await self.office.keys.create(
            DEFAULT_ORGANIZATION, project_id, actor="cli", name="k", scopes=scopes or ("all",)
        )
        return new.secret

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BatchRunner]:
        """A gateway that works at batches."""
        runner = BatchRunner(
            self.batches,
            Inside(self.app),
            self.replica.stats,
            look_s=0.02,
            tick_s=0.01,
        )
        task = asyncio.ensure_future(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def open_house(database: Database, folder: Path, replica: FakeReplica) -> AsyncIterator[House]:
    clock = ManualClock(2_000_000_000)
    authority = Authority(database, clock=clock, write_uses_s=3600.0)
    office = open_office(database, clock=clock, changed=authority.invalidate)
    files = Files(database, LocalObjects(folder), max_bytes=100_000, clock=clock)
    batches, metering = Batches(database, files, clock), FakeMetering()
    service = make_service(replica, authority=authority, metering=metering)
    app = create_app(service, files=files, batches=batches)
    async with AsyncExitStack() as stack:

        async def tenant(name: str) -> Tenant:
            project = await office.projects.create(DEFAULT_ORGANIZATION, actor="cli", name=name)
            new = await office.keys.create(DEFAULT_ORGANIZATION, project.id, actor="cli", name="k")
            transport = httpx.ASGITransport(app=app)
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport))
            client = AsyncOpenAI(
                api_key=new.secret, base_url="http://stoa/v1", http_client=http, max_retries=0
            )
            return Tenant(project.id, new.secret, client)

        red, blue = await tenant("red"), await tenant("blue")
        yield House(
            app, office, database, files, batches, replica, metering, clock, red, blue, stack
        )  # fmt: skip
    await authority.close()
