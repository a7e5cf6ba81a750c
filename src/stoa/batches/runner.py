"""Works at batches as long as the gateway lives: takes up those that nobody works at, and minds the engine meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from stoa.batches.batches import Batches
from stoa.batches.feed import Equipment
from stoa.batches.lease import Lease, LeaseLost, Leases
from stoa.batches.run import BatchRun
from stoa.batches.sender import Sender
from stoa.batches.throttle import lateness
from stoa.engine.stats import EngineStats
from stoa.errors import StoaError
from stoa.tenancy.delegates import Delegates

_LOOK_S = 1.0
_MOST_RUNS = 64
log = structlog.get_logger("stoa.batches")


class BatchRunner:
    """One per gateway process."""

    def __init__(
        self,
        batches: Batches,
        sender: Sender,
        stats: Callable[[], Awaitable[EngineStats]],
        *,
        delegates: Delegates | None = None,
        lease_s: int = 30,
        look_s: float = _LOOK_S,
        tick_s: float = 0.25,
        late: Callable[[float], Awaitable[float]] = lateness,
    ) -> None:
        """`stats`: of the engine, or of all of them together. `late`: watches the event loop for so many seconds."""
        self._batches, self._stats, self._look_s, self._late = batches, stats, look_s, late
        self.throttle = batches.work.throttle
        self._leases = Leases(batches.database, batches.clock, lease_s)
        self._tools = Equipment(
            files=batches.files,
            sender=sender,
            delegates=delegates or Delegates(batches.database, clock=batches.clock),
            work=batches.work,
            clock=batches.clock,
            tick_s=tick_s,
        )
        self._runs: dict[asyncio.Task[None], Lease] = {}

    async def run(self) -> None:
        """Until cancelled. What runs then is written down as far as it has come, and left to others."""
        minding = asyncio.ensure_future(self._mind())
        try:
            while True:
                self._batches.news.clear()
                await self._take_up()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await self._batches.news.wait()
        finally:
            tasks = [minding, *self._runs]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_up(self) -> None:
        try:
            leases = await self._leases.claim(_MOST_RUNS - len(self._runs), self._runs.values())
        except StoaError as error:
            log.warning("batches cannot be looked at", error=error.message)
            return
        for lease in leases:
            task = asyncio.ensure_future(self._one(lease))
            self._runs[task] = lease
            task.add_done_callback(self._runs.pop)

    async def _one(self, lease: Lease) -> None:
        try:
            await BatchRun(lease, self._leases, self._tools).run()
        except LeaseLost:
            log.warning("another gateway has taken the batch over", batch=lease.batch_id)
        except StoaError as error:
            log.warning("a batch cannot go on for now", batch=lease.batch_id, error=error.message)
        except Exception:
            log.exception("a batch cannot go on", batch=lease.batch_id)

    async def _mind(self) -> None:
        """Looks how much the engine has to do."""
        while True:
            late_s = await self._late(self._look_s)
            try:
                self.throttle.observe(await self._stats(), late_s)
            except StoaError:
                self.throttle.back_off()
