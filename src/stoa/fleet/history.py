"""Demand over time as policies want it, from the sums that gateways report."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from stoa.fleet.policies.facts import Demand
from stoa.fleet.reports import GatewayReport

_SUMS = ("requests", "prompt_tokens", "output_tokens", "late")
_IN_FLIGHT = len(_SUMS)


class History:
    """The last `history_s` seconds in bins of `bin_s` whole seconds. The last bin ends with the last whole second."""

    def __init__(self, *, bin_s: int = 1, history_s: int = 7200) -> None:
        self.bin_s = bin_s
        self._seconds = max(1, history_s // bin_s) * bin_s
        self._cells = np.zeros(
            (len(_SUMS) + 1, self._seconds + 1)
        )  # a ring: second t is column t % its length
        self._first: int | None = None  # the first second of all
        self._last = 0  # the second that runs

    def add(self, now_s: float, before: GatewayReport | None, report: GatewayReport) -> None:
        """What came between two reports of one gateway. `before` None: its first here; its sums count if it has never
        heard from a controller, else nobody knows since when."""
        column = self._column(now_s)
        if before is None and report.epoch:
            return
        for row, name in enumerate(_SUMS):
            old = getattr(before, name) if before is not None else 0
            new = getattr(report, name)
            self._cells[row, column] += new - old if new >= old else new  # a sum that shrank began anew

    def seen(self, now_s: float, in_flight: float) -> None:
        """Requests that all gateways hold at this moment."""
        self._cells[_IN_FLIGHT, self._column(now_s)] = in_flight

    def demand(
        self, now_s: float, held: int, oldest_wait_s: float, confined: Mapping[str, int] | None = None
    ) -> Demand:
        """Has at least one bin; none from before the first report, but for what fills the oldest bin."""
        self._column(now_s)
        assert self._first is not None
        whole = min(self._last - self._first, self._seconds)  # seconds that are over
        bins = max(1, math.ceil(whole / self.bin_s))
        columns = np.arange(self._last - bins * self.bin_s, self._last)
        cells = self._cells[:, columns % self._cells.shape[1]]
        cells[:, columns < self._first] = 0.0
        sums = cells.reshape(len(cells), bins, self.bin_s).sum(axis=2)
        requests, prompt_tokens, output_tokens, late, in_flight = sums.tolist()
        return Demand(
            bin_s=self.bin_s,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            in_flight=[value / self.bin_s for value in in_flight],
            late=late,
            held=held,
            oldest_wait_s=oldest_wait_s,
            confined=confined or {},
        )

    def _column(self, now_s: float) -> int:
        """Of the second that runs; those since the last one begin as it ended."""
        second, width = math.floor(now_s), self._cells.shape[1]
        if self._first is None:
            self._first = self._last = second
        for t in range(max(self._last + 1, second - width + 1), second + 1):
            carried = self._cells[_IN_FLIGHT, (t - 1) % width]
            self._cells[:, t % width] = 0.0
            self._cells[_IN_FLIGHT, t % width] = carried
        self._last = max(self._last, second)
        return self._last % width
