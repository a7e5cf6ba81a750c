"""Requests into buckets: of about one size, of one service, group and origin, with a rate for each period.

A bucket's size is the mean over its requests, so rates x seconds x sizes are all tokens that came: none is lost or made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError
from stoa.planner.files.arrivals import Arrivals
from stoa.planner.files.clock import Clock, Quarters, Start, quarters

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
_LEAST_S = 60.0  # a trace must span, for a rate to be one


class Kind(NamedTuple):
    """Who asks: names of service, group and origin."""

    service: str
    group: str
    origin: str = ""


class Who(NamedTuple):
    """What a request says of itself; "": nothing."""

    project: str
    service_class: str
    model: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """One bucket: who, mean tokens, and how many requests in each period (of a table: requests a second)."""

    kind: Kind
    prompt_tokens: float
    output_tokens: float
    counts: tuple[float, ...]
    adapters: float = 0.0  # its part of the distinct adapters of its kind


@dataclass(frozen=True, slots=True)
class Bucketed:
    """`seconds` of each period that the trace covers. By request: its bucket, and its second in the trace."""

    sizes: tuple[Sizes, ...]
    seconds: Floats
    bucket: Numbers
    at_s: Floats
    quarters: Quarters
    start: Start
    begin_s: float
    end_s: float

    def rates(self, bucket: int) -> tuple[float, ...]:
        """Requests a second by period, on average."""
        return tuple((np.array(self.sizes[bucket].counts) / self.seconds).tolist())


def bucketed(
    arrivals: Arrivals,
    clock: Clock,
    start: Start,
    kind_of: Callable[[Who], Kind],
    prompt_edges: Sequence[float],
    output_edges: Sequence[float],
    begin_s: float,
    end_s: float,
) -> Bucketed:
    """Requests of [begin_s, end_s). Edges part sizes: up to the first, up to the second, above the last. ConfigError for
    periods of which the trace has not a second."""
    arrivals = arrivals.part(slice(*np.searchsorted(arrivals.arrival_s, [begin_s, end_s])))
    _check(arrivals, begin_s, end_s)
    parts = quarters(clock, start, begin_s, end_s)
    seconds = np.bincount(parts.period, parts.seconds, len(clock.periods)).astype(np.float64)
    _check_covered(clock, seconds)
    period = parts.period_of(arrivals.arrival_s)
    kinds, kind = kinds_of(arrivals, kind_of)
    prompts, outputs = len(prompt_edges) + 1, len(output_edges) + 1
    code = (kind * prompts + np.searchsorted(prompt_edges, arrivals.prompt_tokens)) * outputs
    code += np.searchsorted(output_edges, arrivals.output_tokens)
    used, bucket = np.unique(code, return_inverse=True)
    sizes = _sizes(
        arrivals, bucket, period, len(clock.periods), [kinds[c // (prompts * outputs)] for c in used]
    )
    return Bucketed(sizes, seconds, bucket, arrivals.arrival_s, parts, start, begin_s, end_s)


def _check(arrivals: Arrivals, begin_s: float, end_s: float) -> None:
    if end_s - begin_s < _LEAST_S:
        raise ConfigError(
            f"demand: the trace spans {max(end_s - begin_s, 0):g} s; accepted: {_LEAST_S:g} s at least (demand.until says "
            "where it ends, if that is later than its last request)",
            param="demand",
        )
    if not len(arrivals):
        raise ConfigError(
            f"demand: no requests between {begin_s:g} s and {end_s:g} s of the trace", param="demand.from"
        )


def _check_covered(clock: Clock, seconds: Floats) -> None:
    missing = [p.name for p, s in zip(clock.periods, seconds, strict=True) if s <= 0]
    if missing:
        raise ConfigError(
            f"demand: the trace has not a second of {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more periods" if len(missing) > 5 else "")
            + '; accepted: a longer trace, or fewer periods (periods.kind = "flat": one)',
            param="demand",
        )


def kinds_of(arrivals: Arrivals, kind_of: Callable[[Who], Kind]) -> tuple[list[Kind], Numbers]:
    """Kinds that there are, and each request's as a number of them."""
    project, service_class, model = arrivals.project, arrivals.service_class, arrivals.model
    classes, models = len(service_class.names) + 1, len(model.names) + 1
    code = (project.codes.astype(np.int64) + 1) * classes + service_class.codes + 1
    code = code * models + model.codes + 1
    used, place = np.unique(code, return_inverse=True)
    number: dict[Kind, int] = {}
    found = np.empty(len(used), np.int64)
    for i, value in enumerate(used.tolist()):
        rest, m = divmod(value, models)
        p, c = divmod(rest, classes)
        who = Who(project.name(p - 1), service_class.name(c - 1), model.name(m - 1))
        found[i] = number.setdefault(kind_of(who), len(number))
    return list(number), found[place]


def _sizes(
    arrivals: Arrivals, bucket: Numbers, period: Numbers, periods: int, kinds: Sequence[Kind]
) -> tuple[Sizes, ...]:
    count = len(kinds)
    counts = np.bincount(bucket * periods + period, minlength=count * periods).reshape(count, periods)
    total = counts.sum(axis=1)
    prompt = np.bincount(bucket, arrivals.prompt_tokens, count) / total
    output = np.bincount(bucket, arrivals.output_tokens, count) / total
    adapters = _adapters(arrivals, bucket, kinds, total)
    return tuple(
        Sizes(kinds[i], float(prompt[i]), float(output[i]), tuple(counts[i].tolist()), adapters[i])
        for i in range(count)
    )


def _adapters(
    arrivals: Arrivals, bucket: Numbers, kinds: Sequence[Kind], total: NDArray[np.int64]
) -> list[float]:
    """Distinct adapters of each kind, spread over its buckets by requests: together they are all there once."""
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    of = np.array([numbers[kind] for kind in kinds])
    some = arrivals.adapter.codes >= 0
    adapters = max(len(arrivals.adapter.names), 1)
    pairs = np.unique(of[bucket[some]] * adapters + arrivals.adapter.codes[some])
    distinct = np.bincount(pairs // adapters, minlength=len(numbers))
    requests = np.bincount(of, total, len(numbers))
    return [float(v) for v in distinct[of] * total / requests[of]]
