"""How urgent a batch is: a pure function of what is left of its lines and of its window.

lines left
total ┤━━━━━━━━━━━━━━╲
      │               ╲       below the line: the batch class, which fills idle time
      │                ╲      above it: interactive, and as many at once as it takes
    0 ┤                 ╲━━━
      └───────────────┴──┴─▶ window
                 IDLE_UNTIL DONE_BY
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.engine.request import ServiceClass

IDLE_UNTIL = 0.5
DONE_BY = 0.9


@dataclass(frozen=True)
class Progress:
    """`todo` of `total` lines are left; `latency_s`: what one takes of late. Times of one clock."""

    total: int
    todo: int
    began_s: float
    ends_s: float
    now_s: float
    latency_s: float


@dataclass(frozen=True)
class Pace:
    """`least`: so many lines are to be in flight even if the engine has no idle time for them."""

    service_class: ServiceClass
    least: int


def pace(seen: Progress) -> Pace:
    window_s = seen.ends_s - seen.began_s
    done_s = seen.began_s + DONE_BY * window_s
    falling_s = (DONE_BY - IDLE_UNTIL) * window_s
    allowed = seen.total * min(1.0, max(0.0, (done_s - seen.now_s) / falling_s))
    if seen.todo <= allowed:
        return Pace("batch", 0)
    left_s = (done_s if seen.now_s < done_s else seen.ends_s) - seen.now_s
    # Little's law: so many at once to be through in the time that is left.
    least = math.ceil(seen.todo * seen.latency_s / left_s) if left_s > 0 else seen.todo
    return Pace("interactive", max(1, min(seen.todo, least)))
