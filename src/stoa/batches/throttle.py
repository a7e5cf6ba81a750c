"""How many requests of batches a gateway has in flight: as many as the engine has idle time for, and a few.

The engine puts batch requests behind all others by itself; what is bounded here is how many of them stand in its queue,
and how much of the gateway's own time goes to them: where the event loop is late, others' first tokens are too.
"""

from __future__ import annotations

import asyncio
from collections import deque

from stoa.engine.stats import EngineStats

START = 8
MOST = 256
LATE_S = 0.005  # on the average, for what the event loop was to do at a given time
_SAMPLES = 20


def next_limit(limit: int, in_flight: int, stats: EngineStats, late_s: float, most: int = MOST) -> int:
    """Grows by half while all is taken up, nothing waits and nothing is late; shrinks by a quarter while much waits, or
    much is late."""
    if stats.waiting > max(1, stats.running // 8) or late_s > LATE_S:
        return max(1, limit * 3 // 4)
    if not stats.waiting and in_flight >= limit and late_s < LATE_S / 2:
        return min(most, limit + max(2, limit // 2))
    return limit


async def lateness(for_s: float) -> float:
    """Seconds by which the event loop is late, on the average of so long."""
    loop, each_s = asyncio.get_running_loop(), for_s / _SAMPLES
    late_s = 0.0
    for _ in range(_SAMPLES):
        due = loop.time() + each_s
        await asyncio.sleep(each_s)
        late_s += loop.time() - due
    return max(0.0, late_s / _SAMPLES)


class Throttle:
    """Places are given in the order in which they were asked for, so that batches take turns."""

    def __init__(self, limit: int = START, most: int = MOST) -> None:
        self.limit, self._most = limit, most
        self.in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, beyond: bool = False) -> None:
        """Waits for a place; not `beyond`: the batch is urgent and takes one more. Leave it afterwards."""
        if beyond or (self.in_flight < self.limit and not self._queue):
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it had just been given
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def observe(self, stats: EngineStats, late_s: float) -> None:
        """Once a second or so."""
        self.limit = next_limit(self.limit, self.in_flight, stats, late_s, self._most)
        self._admit()

    def back_off(self) -> None:
        """The engine takes no more."""
        self.limit = max(1, min(self.limit, self.in_flight) // 2)

    def _admit(self) -> None:
        while self._queue and self.in_flight < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
