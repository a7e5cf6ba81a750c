"""A fleet's controller on a Ray cluster, as a gateway reaches it: through a bridge process that may come and go."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import Callable

import msgspec
import structlog

from stoa.fleet.cluster.bridge import Answer, Connected, Failed, FromBridge, frame
from stoa.fleet.cluster.plan import Plan
from stoa.fleet.reports import ClusterUnreachable, FleetState, GatewayReport

log = structlog.get_logger("stoa.fleet")
_LENGTH = struct.Struct("<I")
_decoder: msgspec.msgpack.Decoder[FromBridge] = msgspec.msgpack.Decoder(FromBridge)


class RayControls:
    """Implements `membership.Controls`. `connect_s`: for Ray to be joined and the controller to be up."""

    def __init__(
        self,
        address: str,
        plan: Plan,
        *,
        connect_s: float = 120.0,
        answer_s: float = 10.0,
        retry_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._plan = address, plan
        self._connect_s, self._answer_s, self._retry_s = connect_s, answer_s, retry_s
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._failed_s: float | None = None

    async def connect(self) -> None:
        """Raises ClusterUnreachable saying why."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stoa.fleet.cluster.bridge", "--address", self._address,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the gateway, which drains first; the bridge ends with its stdin
        )  # fmt: skip
        message = await self._exchange(msgspec.msgpack.encode(self._plan), self._connect_s)
        for notice in message.notices if isinstance(message, Connected) else ():
            log.warning(notice, fleet=self._plan.name)

    async def report(self, report: GatewayReport) -> FleetState:
        if self._process is None:
            if self._failed_s is not None and self._clock() - self._failed_s < self._retry_s:
                raise ClusterUnreachable(f"{self._address} did not answer; it is tried again soon")
            await self.connect()
        message = await self._exchange(msgspec.msgpack.encode(report), self._answer_s)
        if not isinstance(message, Answer):
            await self._drop()
            raise ClusterUnreachable(f"an unexpected {type(message).__name__} came from {self._address}")
        return message.state

    async def hold_still(self) -> None:
        """Other gateways' business goes on."""

    async def close(self) -> None:
        """The fleet goes on without this gateway."""
        await self._drop(failed=False)

    async def _exchange(self, body: bytes, wait_s: float) -> FromBridge:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(wait_s):
                process.stdin.write(frame(body))
                await process.stdin.drain()
                (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
                message = _decoder.decode(await process.stdout.readexactly(length))
        except (TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            await self._drop()
            reason = str(error) or f"no answer within {wait_s:g} s"
            raise ClusterUnreachable(f"the Ray cluster at {self._address}: {reason}") from None
        except asyncio.CancelledError:
            await self._drop(failed=False)
            raise
        if isinstance(message, Failed):
            await self._drop()
            raise ClusterUnreachable(message.trouble.message)
        return message

    async def _drop(self, *, failed: bool = True) -> None:
        process, self._process = self._process, None
        if failed:
            self._failed_s = self._clock()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
