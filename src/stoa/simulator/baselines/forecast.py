"""Forecast of a rate by its own past: ARIMA(p, 1, 0), fitted by least squares.

Box and Jenkins, "Time Series Analysis: Forecasting and Control". The differences of the series follow an autoregression
of `lags` terms; with `season` bins of history and more, the difference one season ago is one more term.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGE = 1e-3  # of the mean square of a term: keeps a short history from being fitted exactly


def arima(history: Sequence[float], steps: int, *, lags: int, season: int = 0) -> tuple[Floats, float]:
    """(the next `steps` values, none below 0; standard deviation of the one-step error).

    With less than three times `lags` values the last one stands for all that come."""
    values = np.asarray(history, np.float64)
    if values.size < max(3, 3 * lags):
        last = float(values[-1]) if values.size else 0.0
        return np.full(steps, last), float(values.std()) if values.size else 0.0
    moves = np.diff(values)
    delays = [*range(1, lags + 1)]
    if season and moves.size > season + 3 * lags:
        delays.append(season)
    weights, error = _fit(moves, delays)
    path = moves.tolist()
    for _ in range(steps):
        path.append(float(sum(w * path[-d] for w, d in zip(weights, delays, strict=True))))
    return np.maximum(0.0, values[-1] + np.cumsum(path[moves.size :])), error


def _fit(moves: Floats, delays: list[int]) -> tuple[Floats, float]:
    longest = max(delays)
    terms = np.stack([moves[longest - d : moves.size - d] for d in delays], axis=1)
    wanted = moves[longest:]
    scale = RIDGE * float(np.mean(np.square(moves))) * wanted.size + 1e-30
    weights = np.linalg.solve(terms.T @ terms + scale * np.eye(len(delays)), terms.T @ wanted)
    return weights.astype(np.float64), float(np.std(wanted - terms @ weights))
