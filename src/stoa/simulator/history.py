"""What has been asked for, in bins, as policies see it."""

from __future__ import annotations

import numpy as np

from stoa.fleet.policies.facts import Demand
from stoa.simulator.core import Bin

_ROWS = 5


class History:
    """The last `length` bins of `bin_s`. Demands that were handed out never change: they are views of what is only
    ever written beyond their end."""

    def __init__(self, bin_s: float, length: int) -> None:
        self.bin_s = bin_s
        self._length = length
        self._table = np.zeros((_ROWS, 2 * length))
        self._end = 0
        self._last = Bin(0, 0, 0, 0, 0, 0, 0.0, 0)

    def add(self, seen: Bin) -> None:
        if self._end == self._table.shape[1]:
            table = np.zeros_like(self._table)
            table[:, : self._length] = self._table[:, -self._length :]
            self._table, self._end = table, self._length
        self._table[:, self._end] = (
            seen.requests, seen.prompt_tokens, seen.output_tokens, seen.in_flight_s / self.bin_s, seen.late,
        )  # fmt: skip
        self._end += 1
        self._last = seen

    def demand(self) -> Demand:
        first = max(0, self._end - self._length)
        views = [row.data.toreadonly()[first : self._end] for row in self._table]
        requests, prompt, output, in_flight, late = views
        return Demand(
            self.bin_s, requests, prompt, output, in_flight, late,
            held=self._last.held, oldest_wait_s=self._last.oldest_wait_s,
        )  # fmt: skip
