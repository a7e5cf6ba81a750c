"""A trace at another rate: thinned, or laid over itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from stoa.errors import InvalidTrace
from stoa.simulator.traces import Requests, join

_AT_ONCE = 1 << 18  # requests made from one piece of the trace, about


def scale_rate(
    chunks: Iterable[Requests], factor: float, *, seed: int = 0, jitter_s: float = 60.0
) -> Iterator[Requests]:
    """`factor` below 1: each request is kept with that probability, at its own time. Above: each is repeated `factor`
    times (a fractional part by chance), its first copy at its own time, the others later by a time drawn evenly from
    0 … `jitter_s`. So the rate by the minute is the trace's times `factor`, bursts much shorter than `jitter_s` become
    flatter, and a request's copies share its lengths."""
    if not (math.isfinite(factor) and factor > 0 and jitter_s >= 0):
        raise InvalidTrace(
            f"a trace cannot be scaled by {factor} with {jitter_s} s of jitter; accepted: above 0"
        )
    rng = np.random.default_rng(seed)
    if factor == 1:
        return iter(chunks)
    return _thinned(chunks, factor, rng) if factor < 1 else _superposed(chunks, factor, rng, jitter_s)


def _thinned(chunks: Iterable[Requests], factor: float, rng: np.random.Generator) -> Iterator[Requests]:
    for chunk in chunks:
        kept = chunk.part(rng.random(len(chunk)) < factor)
        if len(kept):
            yield kept


def _superposed(
    chunks: Iterable[Requests], factor: float, rng: np.random.Generator, jitter_s: float
) -> Iterator[Requests]:
    """What may still be overtaken by copies of later requests waits in `rest`."""
    rest: Requests | None = None
    size = max(1, int(_AT_ONCE / factor))
    for chunk in chunks:
        for at in range(0, len(chunk), size):
            piece = chunk.part(slice(at, at + size))
            copies = _copies(piece, factor, rng, jitter_s)
            merged = copies if rest is None else join([rest, copies])
            merged = merged.part(np.argsort(merged.arrival_s, kind="stable"))
            safe = int(np.searchsorted(merged.arrival_s, piece.arrival_s[-1], side="right"))
            rest = merged.part(slice(safe, None))
            if safe:
                yield merged.part(slice(0, safe))
    if rest is not None and len(rest):
        yield rest


def _copies(piece: Requests, factor: float, rng: np.random.Generator, jitter_s: float) -> Requests:
    whole = math.floor(factor)
    times = np.full(len(piece), whole) + (rng.random(len(piece)) < factor - whole)
    copies = piece.part(np.repeat(np.arange(len(piece)), times))
    first = np.cumsum(times) - times
    shift = rng.random(len(copies)) * jitter_s
    shift[first] = 0.0
    return Requests(
        copies.arrival_s + shift,
        copies.prompt_tokens, copies.output_tokens, copies.project, copies.adapter, copies.names,
    )  # fmt: skip
