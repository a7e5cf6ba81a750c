"""Databases for tests: SQLite, and a PostgreSQL that is started for the run and thrown away after it.

`database` is migrated and empty but for the defaults; a test that asks for it runs once on each. Set
STOA_TEST_POSTGRESQL=require to make a missing PostgreSQL an error, =skip to leave it out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stoa.storage.database import Database
from stoa.storage.migrate import upgrade

T = TypeVar("T")
KINDS = ("sqlite", "postgresql")
_numbers = itertools.count()


def run(work: Coroutine[Any, Any, T]) -> T:
    """To its end, on a loop of its own: the test's loop may be running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class PostgreSQL:
    """A server that listens in `folder` only."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self.folder = binaries, folder
        self._server: subprocess.Popen[bytes] | None = None
        self.migrated: str | None = None

    def start(self) -> None:
        data, account = self.folder / "data", _account()
        if account is not None:
            shutil.chown(self.folder, *account)
        log = open(self.folder / "log", "wb")  # noqa: SIM115
        user, group = account or (None, None)
        initdb = [
            self._binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(initdb, check=True, stdout=log, stderr=log, user=user, group=group, cwd=self.folder)
        settings = ("fsync=off", "listen_addresses=", "max_connections=60", "shared_buffers=16MB")
        command = [self._binaries / "postgres", "-D", data, "-k", self.folder]
        self._server = subprocess.Popen(
            [*command, *(word for s in settings for word in ("-c", s))],
            stdout=log, stderr=log, user=user, group=group, cwd=self.folder,
        )  # fmt: skip
        log.close()
        self._wait()

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()

    def url(self, name: str) -> str:
        return f"postgresql+asyncpg://postgres@/{name}?host={self.folder}"

    async def make(self, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"stoa_{next(_numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def drop(self, name: str) -> None:
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(host=str(self.folder), user="postgres", database="postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def template(self) -> str:
        """A migrated database that others are copied from."""
        if self.migrated is None:
            name = await self.make()
            database = Database(self.url(name))
            await upgrade(database)
            await database.close()
            self.migrated = name
        return self.migrated

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                run(self.execute("SELECT 1"))
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    wish = os.environ.get("STOA_TEST_POSTGRESQL", "")
    binaries = _binaries()
    if binaries is None or wish == "skip":
        if wish == "require":
            pytest.fail("no PostgreSQL: initdb and postgres are neither in PATH nor in /usr/lib/postgresql")
        pytest.skip("no PostgreSQL on this machine" if binaries is None else "STOA_TEST_POSTGRESQL=skip")
    folder = Path(tempfile.mkdtemp(prefix="stoa-pg-", dir="/tmp"))  # a socket's path must be short
    server = PostgreSQL(binaries, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file that others are copied from."""
    file = tmp_path_factory.mktemp("template") / "stoa.db"

    async def make() -> None:
        database = Database(f"sqlite+aiosqlite:///{file}")
        await upgrade(database)
        await database.close()

    run(make())
    return file


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    name = run(server.make())
    yield server.url(name)
    run(server.drop(name))


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a migrated database."""
    if request.param == "sqlite":
        file = tmp_path / "stoa.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite+aiosqlite:///{file}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    name = run(server.make(run(server.template())))
    yield server.url(name)
    run(server.drop(name))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    found = Database(database_url)
    yield found
    await found.close()


def _binaries() -> Path | None:
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -float(p.parent.name))
    for folder in folders:
        if os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK):
            return folder
    return None


def _account() -> tuple[str, str] | None:
    """The server refuses to run as root."""
    return ("postgres", "postgres") if os.getuid() == 0 else None
