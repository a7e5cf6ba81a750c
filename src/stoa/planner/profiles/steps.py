"""Seconds of a step as a sum of what is in it, from steps that were timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoa.fleet.policies.profile import Profile

Floats = NDArray[np.float64]
TERMS = (
    "fixed_s",
    "prompt_row_s",
    "decode_row_s",
    "context_token_s",
)  # of `Profile`, in the order of a row's columns
_ROUNDS = 12  # of weighing anew
_USUAL_ERROR = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    prompt_rows: float
    decode_rows: float
    context_tokens: float  # of the decoding sequences together
    seconds: float


def fit(steps: Iterable[Step]) -> dict[str, float]:
    """Least squares of relative errors, over medians of like steps; a term that comes out below zero is left out and
    the rest fitted again. Relative to what the fit foretells, not to what was seen: the fastest would count most.
    Whoever is far off was disturbed and counts less (Cauchy's weights). Terms that no step has are zero."""
    steps = typical(steps)
    table = np.array([(1.0, s.prompt_rows, s.decode_rows, s.context_tokens) for s in steps], np.float64)
    seconds = np.array([s.seconds for s in steps])
    scale = seconds
    for _ in range(_ROUNDS):
        found = _positive(table / scale[:, None], seconds / scale)
        foretold = np.maximum(table @ found, 1e-9)
        scale = foretold * np.hypot(1, (seconds / foretold - 1) / _USUAL_ERROR)
    return dict(zip(TERMS, found.tolist(), strict=True))


def typical(steps: Iterable[Step]) -> list[Step]:
    """One for each content: its median time."""
    like: dict[tuple[float, float, float], list[float]] = {}
    for step in steps:
        like.setdefault((step.prompt_rows, step.decode_rows, step.context_tokens), []).append(step.seconds)
    return [Step(*content, float(np.median(seconds))) for content, seconds in like.items()]


def errors(profile: Profile, steps: Iterable[Step]) -> Floats:
    """What the profile foretells, relative to the median of like steps, less 1."""
    return np.array(
        [
            profile.step_s(s.prompt_rows, s.decode_rows, s.context_tokens) / s.seconds - 1
            for s in typical(steps)
        ]
    )


def _positive(table: Floats, values: Floats) -> Floats:
    """Least squares without negative coefficients: the worst below zero is left out, and the rest fitted again. Columns
    are scaled, as tokens of context are counted in thousands and steps in ones."""
    norms = np.linalg.norm(table, axis=0)
    chosen = [i for i in range(table.shape[1]) if norms[i] > 0]
    while True:
        found = np.zeros(table.shape[1])
        found[chosen] = (
            np.linalg.lstsq(table[:, chosen] / norms[chosen], values, rcond=None)[0] / norms[chosen]
        )
        below = [i for i in chosen if found[i] < 0]
        if not below:
            return found
        chosen.remove(min(below, key=lambda i: found[i] * norms[i]))
