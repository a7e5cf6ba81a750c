"""How many requests of batches a gateway has in flight: as many as the engine has idle time for, and a few; beside
them those of urgent batches, as far as they leave room in the gateway's queue for everybody else.

The engine puts batch requests behind all others by itself; what is bounded here is how many of them stand in its queue,
and how much of the gateway's own time goes to them: where the event loop is late, others' first tokens are too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

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


def urgent_limit(max_queue: int, others: int) -> int:
    """Of requests of all urgent batches together: a quarter of the queue, less where `others` in flight would not leave
    as much again free; a sixteenth whatever they do, as the projects of urgent batches have a share of it too."""
    most = max(1, max_queue // 4)
    return max(1, most // 4, min(most, max_queue - others - most))


async def lateness(for_s: float) -> float:
    """Seconds by which the event loop is late, on the average of so long."""
    loop, each_s = asyncio.get_running_loop(), for_s / _SAMPLES
    late_s = 0.0
    for _ in range(_SAMPLES):
        due = loop.time() + each_s
        await asyncio.sleep(each_s)
        late_s += loop.time() - due
    return max(0.0, late_s / _SAMPLES)


@dataclass(frozen=True)
class Place:
    """For one request of a project. Leave it afterwards."""

    project_id: str
    urgent: bool


class Turns:
    """Places of one kind. A free one goes to the project that has fewest, and there to who has waited longest."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def taken(self) -> int:
        return self._taken.total()

    async def wait(self, project_id: str) -> None:
        """For a place."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((project_id, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if (project_id, turn) in self._waiting:
                self._waiting.remove((project_id, turn))
            else:  # it had just been given
                self.leave(project_id)
            raise

    def leave(self, project_id: str) -> None:
        self._taken[project_id] -= 1
        if not self._taken[project_id]:
            del self._taken[project_id]

    def give(self, limit: int) -> bool:
        """Gives a place away unless so many are taken; whether it did."""
        waiting = [(project_id, turn) for project_id, turn in self._waiting if not turn.done()]
        if not waiting or self.taken >= limit:
            return False
        project_id, turn = first = min(waiting, key=lambda waiting: self._taken[waiting[0]])
        self._waiting.remove(first)
        self._taken[project_id] += 1
        turn.set_result(None)
        return True


class Throttle:
    """`max_queue`: requests that the gateway takes at once, from everybody; `in_flight_of_all`: how many it has."""

    def __init__(
        self,
        limit: int = START,
        *,
        max_queue: int = 1024,
        in_flight_of_all: Callable[[], int] | None = None,
    ) -> None:
        self._max_queue = max_queue
        self._most = min(MOST, max(1, max_queue // 4))
        self.limit = min(limit, self._most)
        self._idle, self._urgent = Turns(), Turns()
        self._in_flight_of_all = in_flight_of_all or (lambda: self.in_flight)
        self._giving: asyncio.Handle | None = None

    @property
    def in_flight(self) -> int:
        return self._idle.taken + self._urgent.taken

    async def enter(self, project_id: str, *, urgent: bool = False) -> Place:
        """Waits for a place."""
        self._give_soon()
        try:
            await (self._urgent if urgent else self._idle).wait(project_id)
        except asyncio.CancelledError:
            self._give_soon()
            raise
        return Place(project_id, urgent)

    def leave(self, place: Place) -> None:
        (self._urgent if place.urgent else self._idle).leave(place.project_id)
        self._give_soon()

    def observe(self, stats: EngineStats, late_s: float) -> None:
        """Once a second or so."""
        self.limit = next_limit(self.limit, self._idle.taken, stats, late_s, self._most)
        self._give_soon()

    def back_off(self) -> None:
        """The engine takes no more."""
        self.limit = max(1, min(self.limit, self._idle.taken) // 2)

    def _give_soon(self) -> None:
        if self._giving is None:
            self._giving = asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        """One place of each kind in a turn of the loop: a batch waits for one at a time, and who has got it asks for the
        next before that one is given."""
        self._giving = None
        others = max(0, self._in_flight_of_all() - self._urgent.taken)
        given = self._idle.give(self.limit), self._urgent.give(urgent_limit(self._max_queue, others))
        if any(given):
            self._give_soon()
