"""What is planned for beyond the mean: what happens within a period, dear days, scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.demand import Bucketed
from stoa.planner.files.peaks import day_factors, margins
from stoa.planner.problem import Fit, Period, Scenario

Floats = NDArray[np.float64]


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
    safety: doc.Safety, demand: Bucketed | None, work: Floats, periods: Sequence[Period], scale: float
) -> tuple[float, ...]:
    """By period; 1 for demand that is a table and says nothing of what is within its periods. `scale`: of the demand."""
    if isinstance(safety.margin, dict):
        _check_names(safety.margin, periods, "safety.margin")
        return tuple(safety.margin.get(p.name, 1.0) for p in periods)
    if safety.margin is not None:
        return (safety.margin,) * len(periods)
    window_s = units.seconds(safety.window, "safety.window")
    if not 1 <= window_s <= 900:
        raise ConfigError(
            f"safety.window is {safety.window!r}; accepted: from 1 s to 15 min", param="safety.window"
        )
    if demand is None:
        return (1.0,) * len(periods)
    by_day = safety.days is not None
    return tuple(margins(demand, work, safety.within, window_s, scale=scale, by_day=by_day).tolist())


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
