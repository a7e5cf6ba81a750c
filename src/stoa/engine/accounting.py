"""Keeps the books of one engine: every step's time and the pool's bytes are somebody's.

step        its time is divided among its sequences by their work, to the nanosecond
memory      looked at every few steps, and when a sequence lets go: bytes times the time since the last look
request     all its sequences in one `RequestUsage`, when the last has ended
interval    the same sums by account, about once a second, in `Interval`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from stoa.engine.request import FinishReason, GenerationRequest
from stoa.engine.usage import AccountLine, Interval, RequestUsage

_BUSY_INTERVAL_NS = 1_000_000_000
_IDLE_INTERVAL_NS = 10_000_000_000
LOOK_NS = 50_000_000  # between looks at memory


@dataclass(eq=False)
class Book:
    """What one request has used so far. Times are of the accounts' clock; 0: not yet."""

    request: GenerationRequest
    arrived_ns: int
    first_step_ns: int = 0
    first_token_ns: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    compute_ns: int = 0
    kv_byte_ns: int = 0
    adapter_byte_ns: int = 0
    outcome: FinishReason = "cancelled"


@dataclass
class _Line:
    compute_ns: int = 0
    kv_byte_ns: int = 0
    adapter_byte_ns: int = 0


@dataclass
class Accounts:
    """`clock_ns` is monotonic; Unix time is taken once."""

    pool_bytes: int
    clock_ns: Callable[[], int] = time.monotonic_ns
    unix_ns: Callable[[], int] = time.time_ns
    _offset_ns: int = field(init=False)
    _start_ns: int = field(init=False)
    _number: int = 0
    _busy_ns: int = 0
    _lines: dict[str, _Line] = field(default_factory=dict)
    _closed: list[RequestUsage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start_ns = self.clock_ns()
        self._offset_ns = self.unix_ns() - self._start_ns

    @property
    def started_ns(self) -> int:
        """Unix time at which the next interval begins."""
        return self._start_ns + self._offset_ns

    def open(self, request: GenerationRequest) -> Book:
        return Book(request, self.clock_ns())

    def step(self, books: Sequence[Book], works: Sequence[float], took_ns: int) -> list[int]:
        """Divides the time of a step; returns each one's share."""
        shares = divide(took_ns, works)
        for book, share in zip(books, shares, strict=True):
            book.compute_ns += share
            self._line(book).compute_ns += share
        self._busy_ns += took_ns
        return shares

    def memory(self, book: Book, kv_bytes: float, adapter_bytes: float, for_ns: int) -> None:
        """The request has held so much for so long."""
        kv, adapter = int(kv_bytes * for_ns), int(adapter_bytes * for_ns)
        book.kv_byte_ns += kv
        book.adapter_byte_ns += adapter
        line = self._line(book)
        line.kv_byte_ns += kv
        line.adapter_byte_ns += adapter

    def close(self, book: Book) -> None:
        """The request has ended; its usage is among the next reports."""
        now = self.clock_ns()
        begun, first = book.first_step_ns or now, book.first_token_ns or now
        self._closed.append(
            RequestUsage(
                request_id=book.request.id,
                outcome=book.outcome,
                prompt_tokens=len(book.request.prompt_token_ids),
                cached_tokens=book.cached_tokens,
                completion_tokens=book.completion_tokens,
                queue_ns=begun - book.arrived_ns,
                prefill_ns=first - begun,
                decode_ns=now - first,
                compute_ns=book.compute_ns,
                kv_byte_ms=book.kv_byte_ns // 1_000_000,
                adapter_byte_ms=book.adapter_byte_ns // 1_000_000,
            )
        )

    def reports(self, *, final: bool = False) -> list[RequestUsage | Interval]:
        """What has ended since the last call, and an interval when it is time, or `final`."""
        found: list[RequestUsage | Interval] = [*self._closed]
        self._closed = []
        passed = self.clock_ns() - self._start_ns
        if final or passed >= (_BUSY_INTERVAL_NS if self._lines else _IDLE_INTERVAL_NS):
            found.append(self._interval())
        return found

    # -- inside

    def _line(self, book: Book) -> _Line:
        return self._lines.setdefault(book.request.account, _Line())

    def _interval(self) -> Interval:
        end = self.clock_ns()
        lines = [
            AccountLine(
                account=account,
                compute_ns=line.compute_ns,
                kv_byte_ms=line.kv_byte_ns // 1_000_000,
                adapter_byte_ms=line.adapter_byte_ns // 1_000_000,
            )
            for account, line in self._lines.items()
        ]
        interval = Interval(
            number=self._number,
            start_ns=self.started_ns,
            end_ns=end + self._offset_ns,
            busy_ns=self._busy_ns,
            pool_bytes=self.pool_bytes,
            lines=lines,
        )
        self._number += 1
        self._start_ns, self._busy_ns, self._lines = end, 0, {}
        return interval


def divide(total: int, weights: Iterable[float]) -> list[int]:
    """Whole parts in proportion to `weights` (>= 0, not all 0) that sum to `total`."""
    ends = list(accumulate(weights))
    marks = [int(total * (end / ends[-1])) for end in ends[:-1]] + [total]
    return [b - a for a, b in zip([0, *marks], marks, strict=False)]
