"""What is planned for beyond the mean: what happens within a period, dear days, scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.clock import offset_of
from stoa.planner.files.demand import Bucketed
from stoa.planner.files.peaks import day_factors, margins
from stoa.planner.problem import Bucket, Fit, Period, Scenario, Service

Floats = NDArray[np.float64]
_LONGEST_S = 900.0
_LEAST_SHARE = 0.05  # of a period's work: a service with less does not decide how much more is bought for all


def work_of(fits: Sequence[Fit], prompt_tokens: Floats, output_tokens: Floats) -> Floats:
    """[K] work of a request of each bucket: its load, relative to each machine's mean load for a token, on average over the
    machines. Where no machine serves a bucket, its tokens count."""
    tokens = prompt_tokens + output_tokens
    loads = np.array([fit.load_s for fit in fits], np.float64).reshape(len(fits), len(tokens))
    finite = np.isfinite(loads)
    per_token = np.divide(loads, tokens, out=np.zeros_like(loads), where=finite)
    mean = per_token.sum(axis=1, keepdims=True) / np.maximum(finite.sum(axis=1, keepdims=True), 1)
    relative = np.divide(per_token, mean, out=np.zeros_like(loads), where=finite & (mean > 0))
    count = (finite & (mean > 0)).sum(axis=0)
    return tokens * np.where(count > 0, relative.sum(axis=0) / np.maximum(count, 1), 1.0)


def read_margin(
    document: doc.Document,
    demand: Bucketed | None,
    work: Floats,
    periods: Sequence[Period],
    buckets: Sequence[Bucket],
    services: Sequence[Service],
) -> tuple[float, ...]:
    """By period; 1 for demand that is a table and says nothing of what is within its periods."""
    safety = document.safety
    if isinstance(safety.margin, dict):
        _check_names(safety.margin, periods, "safety.margin")
        return tuple(safety.margin.get(p.name, 1.0) for p in periods)
    if safety.margin is not None:
        return (safety.margin,) * len(periods)
    window_s = units.seconds(safety.window, "safety.window")
    if not 1 <= window_s <= _LONGEST_S:
        raise ConfigError(
            f"safety.window is {safety.window!r}; accepted: from 1 s to 15 min", param="safety.window"
        )
    if demand is None:
        return (1.0,) * len(periods)
    found = np.ones(len(periods))
    every = _work_by_period(demand, work)
    for service in services:
        mine = np.array([b.service == service.name for b in buckets])[demand.bucket]
        part = replace(demand, bucket=demand.bucket[mine], at_s=demand.at_s[mine])
        own = margins(
            part, work, safety.within, min(_LONGEST_S, max(window_s, service.ttft_s)),
            scale=document.demand.scale, by_day=safety.days is not None,
        )  # fmt: skip
        counts = _work_by_period(part, work) >= _LEAST_SHARE * every
        found = np.where(counts, np.maximum(found, own), found)
    return tuple(found.tolist())


def _work_by_period(demand: Bucketed, work: Floats) -> Floats:
    period = demand.quarters.period[demand.quarters.of(demand.at_s, offset_of(demand.start))]
    return np.bincount(period, work[demand.bucket], len(demand.seconds)).astype(np.float64)


def read_scenarios(
    safety: doc.Safety, demand: Bucketed | None, work: Floats, periods: Sequence[Period]
) -> tuple[Scenario, ...]:
    """Those of the document, or one of dear days; none: demand as it is."""
    if safety.days is not None:
        if safety.scenario or demand is None:
            raise ConfigError(
                "safety.days goes with a trace or usage, and without safety.scenario", param="safety.days"
            )
        factors = day_factors(demand, work, safety.days)
        return (Scenario(f"{safety.days:.0%} of days", 1.0, tuple(factors.tolist())),)
    for i, entry in enumerate(safety.scenario):
        _check_names(entry.factors, periods, f"safety.scenario[{i}].factors")
    return tuple(
        Scenario(e.name, e.probability, tuple(e.factors.get(p.name, e.factor) for p in periods))
        for e in safety.scenario
    )


def _check_names(given: Iterable[str], periods: Sequence[Period], at: str) -> None:
    known = [period.name for period in periods]
    for name in given:
        if name not in known:
            raise ConfigError(f"{at}: there is no period {name!r}; accepted: {', '.join(known)}", param=at)
