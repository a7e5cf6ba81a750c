"""The stream of requests, as the loop takes it: checked, cut off at the end, never more than a chunk of it in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from stoa.errors import InvalidTrace
from stoa.simulator.traces import Requests


class Arrivals:
    """InvalidTrace for requests that are out of order or impossible, and adapters that come up only later."""

    def __init__(self, requests: Iterable[Requests], until_s: float | None) -> None:
        self._stream: Iterator[Requests] = iter(requests)
        self._until_s = until_s
        self._last_s = 0.0
        self._over = False
        self._first = self._read()
        self.has_adapters = self._first is not None and self._first.adapter is not None

    @property
    def exhausted(self) -> bool:
        """`next` has no more."""
        return self._over and self._first is None

    def next(self) -> Requests | None:
        first, self._first = self._first, None
        if first is not None:
            return first
        chunk = self._read()
        if chunk is not None and chunk.adapter is not None and not self.has_adapters:
            raise InvalidTrace(
                "adapters come up only later in the trace; its first requests need that column too"
            )
        return chunk

    def _read(self) -> Requests | None:
        """The next chunk that is not empty."""
        while not self._over:
            chunk = next(self._stream, None)
            if chunk is None:
                self._over = True
            elif len(chunk):
                self._check(chunk)
                if self._until_s is not None and chunk.arrival_s[-1] >= self._until_s:
                    self._over = True
                    chunk = chunk.part(slice(0, int(np.searchsorted(chunk.arrival_s, self._until_s))))
                if len(chunk):
                    return chunk
        return None

    def _check(self, chunk: Requests) -> None:
        arrival_s = chunk.arrival_s
        if not np.isfinite(arrival_s).all() or (np.diff(arrival_s, prepend=self._last_s) < 0).any():
            raise InvalidTrace("requests are out of order, before second 0, or without a time")
        if min(chunk.prompt_tokens.min(), chunk.output_tokens.min()) < 1:
            raise InvalidTrace("requests without prompt or output tokens; accepted: 1 or more")
        self._last_s = float(arrival_s[-1])
