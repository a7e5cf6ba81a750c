"""What a request will cost at most, before it runs: for reservations against budgets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from fractions import Fraction
from math import ceil

from stoa.engine.usage import RequestUsage

_WINDOW = 256  # requests remembered: older ones are forgotten one by one
_QUANTILE = 0.95
_FEW = 16  # below as many observations: twice the largest
_PRIOR_PROMPT_TOKENS_PER_S = 50  # a slow machine alone with one request; real use costs less
_PRIOR_COMPLETION_TOKENS_PER_S = 2
_HOUR_S = 3600


class _Upper:
    """A high quantile of the last `_WINDOW` observations."""

    def __init__(self, prior: Fraction) -> None:
        self._prior = prior
        self._order: deque[Fraction] = deque()
        self._sorted: list[Fraction] = []

    def add(self, value: Fraction) -> None:
        if len(self._order) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        insort(self._sorted, value)

    def value(self) -> Fraction:
        n = len(self._sorted)
        if n == 0:
            return self._prior
        if n < _FEW:
            return self._sorted[-1] * 2
        return self._sorted[min(int(n * _QUANTILE), n - 1)]


class CostEstimate:
    """Nano-dollars per prompt token and per completion token, learned from requests that have finished."""

    def __init__(self, hourly_nanos: int) -> None:
        """`hourly_nanos`: the node's price, from which the first reservations are made."""
        second = Fraction(hourly_nanos, _HOUR_S)
        self._prompt = _Upper(second / _PRIOR_PROMPT_TOKENS_PER_S)
        self._completion = _Upper(second / _PRIOR_COMPLETION_TOKENS_PER_S)

    def learn(self, usage: RequestUsage, cost_nanos: int) -> None:
        """A request's cost, divided between prompt and completion as its time was. Prompt tokens from the prefix
        cache do not count: the next request may not find its own there."""
        total_ns = usage.prefill_ns + usage.decode_ns
        if total_ns <= 0 or cost_nanos <= 0:
            return
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed > 0 and usage.prefill_ns > 0:
            self._prompt.add(Fraction(cost_nanos * usage.prefill_ns, total_ns * computed))
        decoded = usage.completion_tokens - 1  # the first comes with the prompt
        if decoded > 0 and usage.decode_ns > 0:
            self._completion.add(Fraction(cost_nanos * usage.decode_ns, total_ns * decoded))

    def nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """An upper estimate for a request of that size, rounded up."""
        return ceil(self._prompt.value() * prompt_tokens + self._completion.value() * completion_tokens)
