"""A Redis or Valkey server of our own, if the machine has the program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stoa.tenancy.meters import MemoryMeters, Meters
from stoa.tenancy.meters.redis import RedisMeters
from tests.tenancy.meters.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one node: it refuses scripts whose keys would lie on different nodes."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        if os.environ.get("STOA_TEST_REDIS") == "require":
            pytest.fail("STOA_TEST_REDIS=require, but neither redis-server nor valkey-server is in PATH")
        pytest.skip("needs redis-server or valkey-server in PATH")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "s"
    options = {
        "bind": "127.0.0.1",
        "port": str(_free_port()),
        "unixsocket": str(path),
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "cluster-enabled": "yes",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, *words], stdout=log, stderr=log)
    try:
        _wait_until_up(path, server, folder / "log")
        yield f"unix://{path}"
    finally:
        server.terminate()
        server.wait(10)


def _free_port() -> int:
    """Low enough for the cluster's own port, which is higher by 10000."""
    for port in range(21_000, 31_000, 7):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def _wait_until_up(path: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    redis = pytest.importorskip("redis")
    client = redis.Redis.from_url(f"unix://{path}")
    deadline = time.monotonic() + 20
    while True:
        try:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            break
        except (redis.RedisError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    while b"cluster_state:ok" not in bytes(client.execute_command("CLUSTER", "INFO")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    client.close()


@pytest.fixture(params=["memory", "redis"])
async def meters(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Meters]:
    """Both implementations, on the same manual clock."""
    found: Meters
    if request.param == "memory":
        found = MemoryMeters(clock)
    else:
        found = RedisMeters(request.getfixturevalue("redis_url"), f"test{tmp_path.name}", clock=clock)
    yield found
    await found.close()
