"""Replicas as engine processes on this machine. They end with the process that launched them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stoa.engine.config import EngineConfig
from stoa.fleet.backends.interface import NoCapacity, Status
from stoa.fleet.backends.process import EngineProcess
from stoa.fleet.policies.facts import Offer
from stoa.fleet.worker import DEFAULT_FACTORY


@dataclass(frozen=True, slots=True)
class _Running:
    offer: Offer
    process: EngineProcess
    token: str


class LocalBackend:
    """Implements `Backend`. `most`: processes that this machine has room for; `spare`: while none runs, one process that
    has imported everything waits to load the model. One that is killed is replaced; one that ends by itself is not, as
    the next would too: it is for the first launch to tell why."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        offer: Offer,
        most: int,
        factory: str = DEFAULT_FACTORY,
        node: str | None = None,
        spare: bool = False,
    ) -> None:
        self._config, self._factory = config, factory
        self._offer, self._most = offer, most
        self._node = node if node is not None else socket.gethostname()
        self._running: dict[str, _Running] = {}
        self._keeps_spare = spare
        self._spare: tuple[EngineProcess, str] | None = None
        self.changed: Callable[[], None] = lambda: None

    async def offers(self) -> Sequence[Offer]:
        return [self._offer]

    async def launch(self, replica_id: str, offer: Offer) -> None:
        if len(self._running) >= self._most:
            raise NoCapacity(f"this machine has room for {self._most} replicas")
        spare, self._spare = self._spare, None
        if spare is not None and spare[0].alive:
            process, token = spare
            process.go()
        else:
            process, token = self._start(wait=False)
        self._running[replica_id] = _Running(offer, process, token)
        if spare is not None and spare[0] is not process:
            await asyncio.to_thread(spare[0].end)

    def _start(self, *, wait: bool) -> tuple[EngineProcess, str]:
        token = secrets.token_urlsafe(32)
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the process
                loop.call_soon_threadsafe(lambda: self.changed())

        process = EngineProcess(
            self._config, host="127.0.0.1", token=token, factory=self._factory, changed=changed, wait=wait
        )
        return process, token

    async def stop(self, replica_id: str) -> None:
        if (running := self._running.pop(replica_id, None)) is not None:
            await asyncio.to_thread(running.process.end)

    async def look(self) -> Sequence[Status]:
        if self._spare is not None and self._spare[0].killed:
            (dead, _), self._spare = self._spare, None
            await asyncio.to_thread(dead.end)
        if self._keeps_spare and not self._running and self._spare is None:
            self._spare = self._start(wait=True)
        return [status for i, r in list(self._running.items()) if (status := self._status(i, r)) is not None]

    async def close(self) -> None:
        """Ends them all."""
        if self._spare is not None:
            spare, _ = self._spare
            self._spare, self._keeps_spare = None, False
            await asyncio.to_thread(spare.end)
        await asyncio.gather(*(self.stop(replica_id) for replica_id in list(self._running)))

    def _status(self, replica_id: str, running: _Running) -> Status | None:
        process = running.process
        if process.alive:
            if not process.address:
                return Status(replica_id, running.offer, "starting", node=self._node)
            return Status(
                replica_id, running.offer, "ready", process.address, running.token, self._node
            )  # fmt: skip
        if (trouble := process.trouble()) is not None:
            return Status(replica_id, running.offer, "failed", trouble=trouble)
        del self._running[replica_id]
        return None
