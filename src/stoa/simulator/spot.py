"""How many spot machines a zone has, over time."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stoa.errors import InvalidTrace


@dataclass(frozen=True, slots=True)
class SpotTrace:
    """Capacity by ticks of `gap_s`. It begins `offset_s` into the data and starts over at their end.

    Reading: a value is the number of machines that can be had, times `scale`. `inverted`: it is the number, out of the
    most the data know, that can not be had."""

    gap_s: float
    counts: NDArray[np.int64]
    offset_s: float = 0.0
    scale: int = 1
    inverted: bool = False
    _levels: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _starts_s: list[float] = field(init=False, repr=False, compare=False)  # where the level changes, 0 first

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gap_s) and self.gap_s > 0 and len(self.counts) and self.scale >= 0):
            raise InvalidTrace("a spot trace needs ticks longer than 0 s, values, and a scale of 0 or above")
        levels = np.asarray(self.counts, np.int64)
        if self.inverted:
            levels = levels.max() - levels
        steps = np.flatnonzero(np.diff(levels, prepend=levels[0] - 1))
        object.__setattr__(self, "_levels", levels[steps] * self.scale)
        object.__setattr__(self, "_starts_s", (steps * self.gap_s).tolist())

    @property
    def length_s(self) -> float:
        return self.gap_s * len(self.counts)

    def capacity(self, at_s: float) -> int:
        place_s = (at_s + self.offset_s) % self.length_s
        return int(self._levels[bisect_right(self._starts_s, place_s) - 1])

    def next_change_s(self, after_s: float) -> float:
        """The next time at which the capacity may be another; inf: never."""
        if len(self._starts_s) == 1:
            return math.inf
        rounds, place_s = divmod(after_s + self.offset_s, self.length_s)
        i = bisect_right(self._starts_s, place_s)
        next_s = self._starts_s[i] if i < len(self._starts_s) else self.length_s
        at_s = rounds * self.length_s + next_s - self.offset_s
        return at_s if at_s > after_s else math.nextafter(after_s, math.inf)

    def share_available(self) -> float:
        """Of the time, with a machine to be had."""
        lengths = np.diff(np.append(self._starts_s, self.length_s))
        return float(lengths[self._levels > 0].sum() / self.length_s)


def read_spot(
    path: Path | str, *, offset_s: float = 0.0, scale: int = 1, inverted: bool = False
) -> SpotTrace:
    """JSON {"metadata": {"gap_seconds": s}, "data": [machines by tick]}. InvalidTrace says what is wrong with it."""
    try:
        document = json.loads(Path(path).read_text())
        gap_s, data = float(document["metadata"]["gap_seconds"]), document["data"]
        counts = np.array(data, dtype=np.float64)
    except OSError as error:
        raise InvalidTrace(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidTrace(
            f'{path}: {error!r}; accepted: {{"metadata": {{"gap_seconds": s}}, "data": [counts]}}'
        ) from None
    if counts.ndim != 1 or not counts.size or not math.isfinite(gap_s) or gap_s <= 0:
        raise InvalidTrace(f"{path}: accepted: gap_seconds above 0 and a list of counts that is not empty")
    bad = np.flatnonzero(~((counts >= 0) & (counts == np.floor(counts)) & (counts < 1e9)))
    if bad.size:
        raise InvalidTrace(
            f"{path}, data[{bad[0]}]: {data[bad[0]]!r}; accepted: whole numbers from 0, every tick (fill gaps)"
        )
    return SpotTrace(gap_s, counts.astype(np.int64), offset_s, scale, inverted)
