"""How uneven demand is: within a period, and from day to day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stoa.planner.files.demand import Bucketed

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
SPREAD_S = 60.0  # of copies, where a trace is scaled up: as `simulator.scale_rate` has it
_COPIES = 64  # more make demand no more even


def margins(
    demand: Bucketed,
    work: Floats,
    quantile: float,
    window_s: float,
    *,
    scale: float = 1.0,
    by_day: bool = False,
) -> Floats:
    """By period, at least 1: that share of its requests comes in windows that bring no more work than so many times the mean
    of the period, or with `by_day` of that period of that day. `work` [K]: of a request of each bucket, in any unit.
    Windows begin with the trace; one at its end that is not whole is left out. `scale`: of the demand, as the simulator
    scales traces.

    Requests count, not windows: it is requests that were promised something, and most of them come when many do."""
    count = max(1, int((demand.end_s - demand.begin_s) // window_s))
    came, requests = _by_window(demand, work, window_s, count, scale)
    middles = demand.begin_s + (np.arange(count, dtype=np.float64) + 0.5) * window_s
    period, day = _periods_of(demand, middles)
    group = (
        period if not by_day else np.unique(np.stack([period, day]), axis=1, return_inverse=True)[1].ravel()
    )
    mean = np.bincount(group, came) / np.maximum(np.bincount(group), 1)
    relative = np.divide(came, mean[group], out=np.ones_like(came), where=mean[group] > 0)
    found = [
        _quantile(relative[period == p], requests[period == p], quantile) for p in range(len(demand.seconds))
    ]
    return np.maximum(1.0, found)


def _periods_of(demand: Bucketed, moments: Floats) -> tuple[Numbers, Numbers]:
    """Periods and days that moments of the trace are in."""
    part = np.clip(demand.quarters.of(moments), 0, len(demand.quarters.period) - 1)
    return demand.quarters.period[part].astype(np.int64), demand.quarters.day[part].astype(np.int64)


def _by_window(
    demand: Bucketed, work: Floats, window_s: float, count: int, scale: float
) -> tuple[Floats, Floats]:
    """Work and requests in each window. Scaled up, each request comes so many times, first at its own time; scaled down,
    some do not come."""
    rng = np.random.default_rng(0)
    at_s, each = demand.at_s - demand.begin_s, work[demand.bucket]
    came, requests, left = np.zeros(count), np.zeros(count), min(scale, _COPIES)
    while left > 0:
        is_first = left == min(scale, _COPIES)
        moment_s = at_s if is_first else at_s + rng.random(len(at_s)) * SPREAD_S
        comes = rng.random(len(at_s)) < left
        window = (moment_s[comes] // window_s).astype(np.int64)
        inside = window < count
        came += np.bincount(window[inside], each[comes][inside], count)
        requests += np.bincount(window[inside], minlength=count)
        left -= 1
    return came, requests


def _quantile(values: Floats, weights: Floats, quantile: float) -> float:
    """1 where there is nothing."""
    total = float(weights.sum())
    if total <= 0:
        return 1.0
    order = np.argsort(values)
    at = int(np.searchsorted(np.cumsum(weights[order]), quantile * total * (1 - 1e-12)))
    return float(values[order[min(at, len(order) - 1)]])


def day_factors(demand: Bucketed, work: Floats, quantile: float) -> Floats:
    """By period: that quantile of its days' mean work, relative to the mean of all days; 1 where there is one day. Days of
    which the trace has less than half of the period's hours do not count."""
    parts = demand.quarters
    part = parts.of(demand.at_s)
    came = np.bincount(part, work[demand.bucket], len(parts.period))
    found = np.ones(len(demand.seconds))
    for p in range(len(found)):
        mine = parts.period == p
        days, number = np.unique(parts.day[mine], return_inverse=True)
        seconds = np.bincount(number, parts.seconds[mine])
        pace = np.bincount(number, came[mine]) / np.maximum(seconds, 1e-9)
        whole = seconds >= seconds.max() / 2
        mean = came[mine].sum() / seconds.sum()
        if len(days) > 1 and whole.sum() > 1 and mean > 0:
            found[p] = np.quantile(pace[whole], quantile) / mean
    return found
