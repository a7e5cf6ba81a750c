"""How the simulated world behaves, beside its zones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Options:
    notice_s: float = 120.0  # before a spot machine goes (AWS 120, GCP 30); 0: it goes at once
    drain: Literal["migrate", "finish"] = "migrate"  # what becomes of a drained replica's requests
    handover_s: float = (
        0.0  # a drained machine ends no sooner after that: until a controller has heard, and acted
    )
    startup_spread: float = 0.0  # startups take startup_s · (1 ± so much), drawn evenly
    history_s: float = 2 * DAY_S  # what policies see of the past
    measure_from_s: float = (
        0.0  # requests that arrive, and machine time that passes, before this do not count
    )
    runout_s: float = (
        600.0  # after the end, so long for requests to get their first tokens, unpaid and uncounted
    )
    order: Literal["deadline", "arrival"] = (
        "deadline"  # of waiting requests: those in time first, or as they come
    )
    queue_limit: int = 0  # requests a replica takes before others are held; 0: any number
    adapters_each: int = (
        64  # that a replica holds at once, if the trace has a column of adapters; 0: they do not matter
    )
    room: int = 4096  # replicas at once, at most
    record: int = 0  # times of so many requests are kept one by one
    stepwise: bool = False  # run on the slow twin
