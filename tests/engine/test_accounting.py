"""Every nanosecond of a step and every byte of the pool is booked once."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stoa.engine.accounting import Accounts, divide
from stoa.engine.request import GenerationRequest
from stoa.engine.usage import Interval, RequestUsage
from tests.engine.driving import make_engine, request
from tests.engine.tiny import adapter_folder, model_folder


class Clock:
    def __init__(self) -> None:
        self.ns = 5

    def __call__(self) -> int:
        return self.ns


@given(st.integers(0, 10**12), st.lists(st.floats(0, 1e9), min_size=1, max_size=40).filter(any))
def test_parts_sum_to_the_whole(total: int, weights: list[float]) -> None:
    """Parts are whole, none is negative, and nothing is lost or made; equal weights differ by one at most."""
    parts = divide(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 0
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) <= 1 + 1e-6 * total


def test_intervals_follow_each_other_and_hold_all_steps() -> None:
    """Without gap or overlap, numbered; what accounts used in one is not in the next; idle ones come seldom."""
    clock = Clock()
    accounts = Accounts(1000, clock_ns=clock, unix_ns=lambda: 1_000_000)
    books = [accounts.open(GenerationRequest(id=a, prompt_token_ids=[1], account=a)) for a in "ab"]
    accounts.step(books, [3.0, 1.0], 400)
    assert accounts.reports() == []
    clock.ns += 1_000_000_000
    (first,) = accounts.reports()
    clock.ns += 5_000_000_000
    assert accounts.reports() == []
    accounts.step(books[:1], [1.0], 70)
    (second,) = accounts.reports()
    assert isinstance(first, Interval)
    assert isinstance(second, Interval)
    assert (first.number, first.start_ns, first.busy_ns) == (0, 1_000_000, 400)
    assert (second.number, second.start_ns, second.busy_ns) == (1, first.end_ns, 70)
    assert [(line.account, line.compute_ns) for line in first.lines] == [("a", 300), ("b", 100)]
    assert [line.account for line in second.lines] == ["a"]


def test_memory_is_bytes_times_time() -> None:
    """Byte-milliseconds, of the request and of its account alike."""
    clock = Clock()
    accounts = Accounts(1 << 20, clock_ns=clock)
    book = accounts.open(GenerationRequest(id="r", prompt_token_ids=[1, 2], account="a"))
    accounts.memory(book, 4096.0, 100.5, 10_000_000)
    accounts.close(book)
    usage, interval = accounts.reports(final=True)
    assert isinstance(usage, RequestUsage)
    assert isinstance(interval, Interval)
    assert (usage.kv_byte_ms, usage.adapter_byte_ms) == (40_960, 1005)
    assert (interval.lines[0].kv_byte_ms, interval.lines[0].adapter_byte_ms) == (40_960, 1005)


def test_an_engine_books_every_request_once() -> None:
    """Finished, cancelled, refused and embedded ones; their shares sum to the intervals', and the pool is never
    more than full."""
    engine = make_engine(model_folder("llama"), max_num_seqs=3, max_batch_tokens=16, pool_bytes=1 << 19)
    asked = [
        request("plain", [5] * 20, max_tokens=6),
        request("many", [7] * 20, n=3, max_tokens=5),
        request("adapted", [9] * 9, adapter=adapter_folder("llama", 1), max_tokens=4),
        request("left", [11] * 9, max_tokens=50),
    ]
    for each in asked:
        engine.add_request(each)
    reports: list[RequestUsage | Interval] = []
    for step in itertools.count():
        if not engine.has_requests:
            break
        if step == 6:
            engine.cancel("left")
        engine.step()
        if engine.idle:
            engine.wakeup.wait(0.05)
            engine.wakeup.clear()
        reports += engine.accounts.reports(final=step % 3 == 0)
    reports += engine.accounts.reports(final=True)
    usages = {r.request_id: r for r in reports if isinstance(r, RequestUsage)}
    intervals = [r for r in reports if isinstance(r, Interval)]
    assert len(usages) == len([r for r in reports if isinstance(r, RequestUsage)]) == 4
    assert usages["many"].completion_tokens == 15
    assert usages["left"].outcome == "cancelled"
    assert usages["plain"].outcome == "length"
    assert usages["adapted"].adapter_byte_ms > 0
    lines = [line for i in intervals for line in i.lines]
    assert sum(u.compute_ns for u in usages.values()) == sum(i.busy_ns for i in intervals)
    assert sum(line.compute_ns for line in lines) == sum(i.busy_ns for i in intervals)
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(intervals))
    assert all(i.busy_ns <= i.end_ns - i.start_ns for i in intervals)
    held = sum(line.kv_byte_ms + line.adapter_byte_ms for line in lines)
    assert held <= intervals[0].pool_bytes * (intervals[-1].end_ns - intervals[0].start_ns) / 1e6
