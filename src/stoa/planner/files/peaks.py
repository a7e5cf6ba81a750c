"""How uneven demand is: within a period, and from day to day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stoa.planner.files.clock import offset_of
from stoa.planner.files.demand import Bucketed

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
SPREAD_S = (
    60.0  # where a trace is scaled up, copies of a request come up to so much later (`simulator.scale_rate`)
)


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
    edges = np.arange(count + 1, dtype=np.float64) * window_s
    at_s, each = demand.at_s - demand.begin_s, work[demand.bucket]
    if scale < 1:
        kept = np.random.default_rng(0).random(len(at_s)) < scale
        at_s, each = at_s[kept], each[kept]
    came, requests = (_by_window(at_s, what, edges, scale) for what in (each, np.ones(len(at_s))))
    period, day = _periods_of(demand, demand.begin_s + edges[:-1] + window_s / 2)
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
    part = np.clip(demand.quarters.of(moments, offset_of(demand.start)), 0, len(demand.quarters.period) - 1)
    return demand.quarters.period[part].astype(np.int64), demand.quarters.day[part].astype(np.int64)


def _by_window(at_s: Floats, each: Floats, edges: Floats, scale: float) -> Floats:
    """What comes between the edges, of each request's own copy at its time, and of the others spread over `SPREAD_S`."""
    own = np.diff(np.concatenate([[0.0], np.cumsum(each)])[np.searchsorted(at_s, edges)])
    if scale <= 1:
        return own
    before, moment = (np.concatenate([[0.0], np.cumsum(v)]) for v in (each, each * at_s))

    def ramp(x: Floats) -> Floats:
        """Sum over earlier requests of what they bring, times the seconds since."""
        i = np.searchsorted(at_s, x)
        risen: Floats = x * before[i] - moment[i]
        return risen

    spread = np.diff((ramp(edges) - ramp(edges - SPREAD_S)) / SPREAD_S)
    return own / scale + np.maximum(0.0, spread) * (1 - 1 / scale)


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
    part = parts.of(demand.at_s, offset_of(demand.start))
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
