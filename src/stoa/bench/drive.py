"""Sends requests into an engine, by the clock or as places become free, and notes when tokens come."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from stoa.engine import Engine, GenerationRequest


@dataclass
class Timing:
    """Of one request, in seconds."""

    arrived_s: float
    first_s: float = 0.0  # arrival to first token
    gaps_s: list[float] = field(default_factory=list)  # between tokens
    tokens: int = 0
    last_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    wall_s: float  # first arrival to last token
    by_request: dict[str, Timing]

    @property
    def timings(self) -> list[Timing]:
        return list(self.by_request.values())

    @property
    def output_tok_s(self) -> float:
        return sum(t.tokens for t in self.timings) / self.wall_s


def drive(
    engine: Engine,
    requests: Iterable[tuple[float, GenerationRequest]],
    at_once: int | None = None,
    *,
    stop_s: float = math.inf,
) -> Outcome:
    """`requests`: (seconds after the start, request), by time. With `at_once`, times are ignored: so many run,
    and the next one comes when one ends. After `stop_s`, what has not ended is left in the engine. Raises
    RuntimeError if a request fails."""
    timings: dict[str, Timing] = {}
    live: set[str] = set()
    coming = iter(requests)
    following = next(coming, None)
    started = time.perf_counter()
    while following is not None or live:
        now = time.perf_counter() - started
        if now >= stop_s:
            break
        while following is not None and (len(live) < at_once if at_once else following[0] <= now):
            due, request = following
            engine.add_request(request)
            live.add(request.id)
            timings[request.id] = Timing(arrived_s=now if at_once else due)
            following = next(coming, None)
        events = engine.step()
        now = time.perf_counter() - started
        for event in events:
            if event.error:
                raise RuntimeError(event.error)
            _note(timings[event.request_id], now, len(event.token_ids))
            if event.finish_reason is not None:
                live.discard(event.request_id)
        if engine.idle:
            _rest(engine, None if at_once or following is None else following[0] - now)
    return Outcome(time.perf_counter() - started, timings)


def _note(timing: Timing, now: float, tokens: int) -> None:
    if timing.tokens:
        timing.gaps_s.append(now - timing.last_s)
    else:
        timing.first_s = now - timing.arrived_s
    timing.tokens += tokens
    timing.last_s = now


def _rest(engine: Engine, until_next_s: float | None) -> None:
    """Nothing can run: waits for a loader, or for the next arrival."""
    wait_s = 0.05 if until_next_s is None else max(0.0, min(0.05, until_next_s))
    if wait_s:
        engine.wakeup.wait(wait_s)
    engine.wakeup.clear()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
