"""A replica on this machine: an engine process, started, watched, and started again when it ends."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stoa import errors
from stoa.economics.node import Node
from stoa.engine.config import EngineConfig
from stoa.errors import EngineUnavailable, StoaError
from stoa.fleet.link import EngineLink
from stoa.fleet.linked import LinkedReplica
from stoa.fleet.worker import DEFAULT_FACTORY, LINK_LIMIT_BYTES, STARTUP_ERROR

log = structlog.get_logger("stoa.fleet")
_STDERR_LINES = 40
_MAX_BACKOFF_S = 10.0
_END_S = 2.0  # for the engine to tell what was used, and go


class LocalReplica(LinkedReplica):
    """An engine in a process of its own on this machine."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        id: str = "local",
        node: Node | None = None,
        factory: str = DEFAULT_FACTORY,
        start_s: float = 600.0,
        stall_s: float = 300.0,
    ) -> None:
        """`start_s`: how long an engine may take to start; `stall_s`: to go on, before another replaces it."""
        super().__init__(id, node or Node())
        self.config = config
        self.factory = factory
        self.start_s = start_s
        self.stall_s = stall_s
        self.spawned = asyncio.Event()  # the process exists, though it may not be ready
        self._stopped = False
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._folder = tempfile.TemporaryDirectory(prefix="stoa-")  # mode 0700
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the engine and waits until it is ready. Raises what the engine said if it cannot start."""
        link = await self._spawn()
        self._watcher = asyncio.create_task(self._watch(link))

    async def stop(self) -> None:
        self._stopped = True
        if self.link is not None:
            self.link.cancel_all()
            self.link.drain()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), _END_S)
        await self._kill()
        if self._watcher is not None:
            await self._watcher
        self._folder.cleanup()

    # -- the process

    async def _spawn(self) -> EngineLink:
        path = str(Path(self._folder.name) / f"engine-{self.restarts}.sock")
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set_result((reader, writer))

        listener = await asyncio.start_unix_server(accept, path, limit=LINK_LIMIT_BYTES)
        self._stderr.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stoa.fleet.worker", "--socket", path, "--factory", self.factory,
            "--config", msgspec.json.encode(self.config).decode(), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.spawned.set()
        echo = asyncio.create_task(self._echo_stderr(self._process))
        exited = asyncio.create_task(self._process.wait())
        try:
            pair: set[asyncio.Future[Any]] = {connected, exited}
            await asyncio.wait(pair, timeout=self.start_s, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                await self._kill()
                await echo
                raise start_error(self._stderr)
            link = await EngineLink.greet(*connected.result(), self.books.node(self.node))
        finally:
            exited.cancel()
            listener.close()
        self._linked(link)
        return link

    async def _echo_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace")
            self._stderr.append(line)
            if not line.startswith(STARTUP_ERROR):
                sys.stderr.write(line)

    async def _watch(self, link: EngineLink | None) -> None:
        """When the engine dies, starts another, with growing pauses."""
        pause_s = 0.1
        while True:
            if link is not None:
                began = time.monotonic()
                await self._watch_link(link, self.stall_s, self.stall_s)
                link.closed(0 if self._stopped else time.time_ns())
                pause_s = 0.1 if time.monotonic() - began > 30 else min(2 * pause_s, _MAX_BACKOFF_S)
            await self._kill()
            if self._stopped:
                return
            self.restarts += 1
            status = self._process.returncode if self._process else None
            log.error("the engine stopped; starting another", status=status, restarts=self.restarts)
            await asyncio.sleep(pause_s)
            if self._stopped:
                return
            try:
                link = await self._spawn()
                if self._stopped:
                    link.drain()
            except (StoaError, OSError) as error:
                log.error("the engine did not start again", error=str(error))
                link, pause_s = None, min(2 * pause_s, _MAX_BACKOFF_S)

    async def _kill(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def start_error(stderr: collections.deque[str]) -> StoaError:
    """Why an engine process did not start, from what it printed."""
    for line in stderr:
        if line.startswith(STARTUP_ERROR):
            facts = json.loads(line.removeprefix(STARTUP_ERROR))
            return getattr(errors, facts["class"])(facts["message"], param=facts["param"])  # type: ignore[no-any-return]
    return EngineUnavailable("the engine did not start:\n" + "".join(stderr))
