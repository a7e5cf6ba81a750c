"""A clock that a suspended or overloaded machine cannot make jump."""

from __future__ import annotations

from collections.abc import Callable


class SteadyClock:
    """Seconds that never go back, and between two looks at it never further than `longest_step_s`.

    After a pause of the whole process nothing looks overdue: what should have reported has had no chance to.
    """

    def __init__(self, clock: Callable[[], float], longest_step_s: float) -> None:
        self._clock = clock
        self._longest_step_s = longest_step_s
        self._seen_s = clock()
        self._now_s = 0.0

    def now(self) -> float:
        seen_s = self._clock()
        self._now_s += min(max(0.0, seen_s - self._seen_s), self._longest_step_s)
        self._seen_s = seen_s
        return self._now_s
