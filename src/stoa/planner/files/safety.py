"""What is planned for beyond the mean: what happens within a period, dear days, scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
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
    """By period. Of demand that is a table, which says nothing of what is within its periods, requests are taken to come
    independently of each other."""
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
    if not any(any(b.rates) for b in buckets):
        raise ConfigError("demand: nobody asks for anything", param="demand")
    within = units.share(safety.within, "safety.within")
    if demand is None:
        return _poisson(within, window_s, work, buckets, services)
    found = np.ones(len(periods))
    every = _work_by_period(demand, work)
    for service in services:
        mine = np.array([b.service == service.name for b in buckets])[demand.bucket]
        part = replace(demand, bucket=demand.bucket[mine], at_s=demand.at_s[mine])
        own = margins(
            part, work, within, min(_LONGEST_S, max(window_s, service.ttft_s)),
            scale=document.demand.scale, by_day=safety.days is not None,
        )  # fmt: skip
        counts = _work_by_period(part, work) >= _LEAST_SHARE * every
        found = np.where(counts, np.maximum(found, own), found)
    return tuple(found.tolist())


def _poisson(
    within: float, window_s: float, work: Floats, buckets: Sequence[Bucket], services: Sequence[Service]
) -> tuple[float, ...]:
    """The same of Poisson arrivals with the buckets' rates: work in a window is about normal, with the variance of a
    compound Poisson process."""
    if not 0 < within < 1:
        raise ConfigError(
            f"safety.within is {within:g}; accepted for demand that is a table: above 0 and below 1",
            param="safety.within",
        )
    rates = np.array([b.rates for b in buckets], np.float64)
    found, every = np.ones(rates.shape[1]), work @ rates
    for service in services:
        mine = np.array([b.service == service.name for b in buckets])
        length_s = min(_LONGEST_S, max(window_s, service.ttft_s))
        mean, squares = work[mine] @ rates[mine] * length_s, work[mine] ** 2 @ rates[mine] * length_s
        own = 1 + max(0.0, NormalDist().inv_cdf(within)) * np.sqrt(squares) / np.maximum(mean, 1e-300)
        counts = (mean > 0) & (mean >= _LEAST_SHARE * every * length_s)
        found = np.where(counts, np.maximum(found, own), found)
    return tuple(found.tolist())


def _work_by_period(demand: Bucketed, work: Floats) -> Floats:
    period = demand.quarters.period_of(demand.at_s)
    return np.bincount(period, work[demand.bucket], len(demand.seconds)).astype(np.float64)


def read_scenarios(
    safety: doc.Safety, demand: Bucketed | None, work: Floats, periods: Sequence[Period]
) -> tuple[Scenario, ...]:
    """Those of the document, or one of dear days; none: demand as it is."""
    days = None if safety.days is None else units.share(safety.days, "safety.days")
    if days is not None:
        if safety.scenario or demand is None:
            raise ConfigError(
                "safety.days goes with a trace or usage, and without safety.scenario", param="safety.days"
            )
        factors = day_factors(demand, work, days)
        return (Scenario(f"{days:.0%} of days", 1.0, tuple(factors.tolist())),)
    for i, entry in enumerate(safety.scenario):
        _check_names(entry.factors, periods, f"safety.scenario[{i}].factors")
    return tuple(
        Scenario(
            e.name,
            units.share(e.probability, "safety.scenario.probability"),
            tuple(e.factors.get(p.name, e.factor) for p in periods),
        )
        for e in safety.scenario
    )


def _check_names(given: Iterable[str], periods: Sequence[Period], at: str) -> None:
    known = [period.name for period in periods]
    for name in given:
        if name not in known:
            raise ConfigError(f"{at}: there is no period {name!r}; accepted: {', '.join(known)}", param=at)
