"""Puts database, tenancy and economics together for one gateway process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from stoa.config import Settings
from stoa.economics.api_prices import ApiPrices
from stoa.economics.estimate import CostEstimate
from stoa.economics.ledger import Ledger
from stoa.economics.node import Node
from stoa.economics.prices import PriceBook
from stoa.economics.purchases import PurchaseLedger
from stoa.economics.usage import UsageWriter
from stoa.errors import ConfigError, DatabaseUnavailable, StoaError
from stoa.storage.database import Database, database_url
from stoa.storage.migrate import upgrade
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.alerts import Webhooks
from stoa.tenancy.authority import ANYBODY, ANYBODY_HERE, NOBODY, Authority
from stoa.tenancy.facts import any_keys
from stoa.tenancy.gate import Gate, Payer
from stoa.tenancy.metering import Metering
from stoa.tenancy.meters.interface import Meters
from stoa.tenancy.meters.memory import MemoryMeters
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.secret import is_well_formed

log = structlog.get_logger("stoa.tenancy")


@dataclass
class Tenancy:
    """What a gateway knows of tenants. `keys_wanted`: a request without a key is refused."""

    database: Database
    authority: Authority
    office: Office
    metering: Metering
    meters: Meters
    purchases: PurchaseLedger
    api_prices: ApiPrices
    keys_wanted: bool
    _writer: UsageWriter
    _bell: Bell
    _tasks: list[asyncio.Task[None]]

    async def close(self) -> None:
        """After the engines have stopped: settles, books and writes what is left."""
        await self.metering.close()
        with contextlib.suppress(DatabaseUnavailable):  # said in the log
            await self.purchases.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(
            DatabaseUnavailable
        ):  # said in the log; the records are lost with the process
            await self._writer.close()
        await self._bell.close()
        await self.authority.close()
        await self.database.close()


async def open_tenancy(settings: Settings, *, loopback: bool) -> Tenancy:
    """Raises ConfigError, DatabaseUnavailable."""
    if is_well_formed(settings.api_key):
        raise ConfigError(
            "api_key is a key made by stoa key; the server's own opens everything and must be another one "
            "(is STOA_API_KEY set for a client?)",
            param="api_key",
        )
    database = Database(database_url(settings.db, settings.home_path))
    await upgrade(database)
    prices = PriceBook(database)
    await prices.seed(os.cpu_count() or 1)
    writer = UsageWriter(database, settings.home_path / "usage")
    await writer.start()

    def ledger_of(node: Node) -> Ledger:
        name = node.name or settings.node or socket.gethostname()
        machine = node.machine or settings.machine
        return Ledger(database, prices, name, machine, settings.watts, settings.memory_share)

    ledger = ledger_of(Node())
    await ledger.refresh()
    estimate = CostEstimate(ledger.hourly_nanos(time.time()))
    keys_wanted = await _keys_wanted(settings, database, loopback)
    scopes = NOBODY if keys_wanted else ANYBODY_HERE if loopback else ANYBODY
    authority = Authority(
        database, static_key=settings.api_key, open_project=scopes, until_keys=settings.auth == "auto"
    )
    office = open_office(database, changed=authority.invalidate)
    bell = Bell(office, Webhooks(_secret(settings.home_path / "webhook-secret"), clock=time.time))

    async def spent(payer: Payer, period: str) -> int:
        projects = (
            [payer.project_id] if payer.project_id else await office.projects.ids(payer.organization_id)
        )
        return sum([await writer.spent(p, _start_of(period)) for p in projects])

    meters = _meters(settings)
    gate = Gate(meters, estimate=estimate.nanos, spent=spent, clock=time.time, on_alert=bell.ring)
    metering = Metering(gate, writer, ledger_of, estimate, database, time.time)
    purchases, api_prices = PurchaseLedger(database, time.time), ApiPrices(prices)
    work = [metering.run(), gate.run()]
    if settings.remote:
        await api_prices.refresh()
        work += [purchases.run(), api_prices.run()]
    tasks = [asyncio.create_task(each) for each in work]
    return Tenancy(
        database, authority, office, metering, meters, purchases, api_prices, keys_wanted, writer, bell, tasks
    )


class Bell:
    """Calls those who want to be told that a project has spent so much."""

    def __init__(self, office: Office, webhooks: Webhooks) -> None:
        self._office, self._webhooks = office, webhooks
        self._ringing: set[asyncio.Task[None]] = set()

    def ring(self, payer: Payer, threshold_nanos: int, spent_nanos: int) -> None:
        """Never waits."""
        task = asyncio.ensure_future(self._ring(payer, threshold_nanos, spent_nanos))
        self._ringing.add(task)
        task.add_done_callback(self._ringing.discard)

    async def _ring(self, payer: Payer, threshold_nanos: int, spent_nanos: int) -> None:
        facts = {**payer._asdict(), "threshold_nanos": threshold_nanos, "spent_nanos": spent_nanos}
        log.warning("spend alert", **facts)
        event = {"object": "event", "type": "spend_alert", "data": facts}
        try:
            urls = await self._office.budgets.webhooks(*payer, threshold_nanos)
        except StoaError as error:
            log.warning("nobody could be told of it", error=error.message)
            return
        for url in urls:
            self._webhooks.send(url, event)

    async def close(self) -> None:
        await asyncio.gather(*self._ringing, return_exceptions=True)
        await self._webhooks.close()


def _meters(settings: Settings) -> Meters:
    if not settings.redis:
        return MemoryMeters(clock=time.time)
    from stoa.tenancy.meters.redis import RedisMeters

    return RedisMeters(settings.redis)


async def _keys_wanted(settings: Settings, database: Database, loopback: bool) -> bool:
    """Raises ConfigError where strangers would be let in unasked."""
    if settings.auth != "auto":
        return settings.auth == "keys"
    if settings.api_key:
        return True
    async with database.read(EVERY_PROJECT) as session:
        have_keys = await any_keys(session)
    if not have_keys and not loopback:
        raise ConfigError(
            f"binding {settings.host} without keys lets anybody in; make one (stoa key add default), give --api-key, "
            "or --auth open to accept that",
            param="auth",
        )
    return have_keys


def _start_of(period: str) -> int:
    """Unix seconds of "2026-11" or "total"."""
    if period == "total":
        return 0
    return int(datetime.strptime(period, "%Y-%m").replace(tzinfo=UTC).timestamp())


def _secret(path: Path) -> str:
    """Made once; receivers of webhooks check signatures with it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_urlsafe(32))
        part.rename(path)
    return path.read_text()
