"""The way of an adapter from disk to pool: what is given up on the way, or fails, leaves nothing behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from stoa.engine.kernels.interface import LoraPair
from stoa.engine.memory.adapter_cache import AdapterCache
from stoa.engine.memory.pool import PagePool
from stoa.engine.request import AdapterRef
from stoa.errors import InvalidAdapter

REF = AdapterRef(id="x", path="/x")


class SlowKernels:
    """Lays adapters out when told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def adapter_nbytes(self, linears: Any, ranks: Any) -> int:
        return 300

    def stage_adapter(self, linears: Any, pairs: Any) -> Any:
        return self._lay_out

    def _lay_out(self, dst: torch.Tensor) -> Any:
        assert self.go.wait(10)
        dst.fill_(7)
        return type("Packed", (), {"nbytes": dst.numel()})()


class Reader:
    """Reads adapters, or fails while `error` is set."""

    def __init__(self) -> None:
        self.error: InvalidAdapter | None = None

    def __call__(self, ref: AdapterRef) -> Any:
        if self.error is not None:
            raise self.error
        return {(0, "q"): LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}


def make(
    reader: Reader, kernels: SlowKernels, host_bytes: int = 1 << 20, elsewhere: Any = None
) -> AdapterCache:
    pool = PagePool(16, 64)
    return AdapterCache(
        pool, kernels, [None], [[(0, "q")]], reader, host_bytes=host_bytes, wakeup=threading.Event(),  # type: ignore
        elsewhere=elsewhere,
    )  # fmt: skip


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_pages_stay_taken_while_an_adapter_is_laid_out_into_them() -> None:
    """Also when it is unloaded and its only user leaves meanwhile."""
    kernels = SlowKernels()
    cache = make(Reader(), kernels)
    cache.prefetch(REF)
    kernels.go.clear()
    until(lambda: cache.pin(REF, 1))
    cache.forget("x")
    cache.unpin("x", 2)
    assert cache.pool.num_free == 11
    kernels.go.set()
    until(lambda: cache.oldest_idle() is not None)
    cache.evict("x")
    assert cache.pool.num_free == 16
    cache.close()


def test_what_was_read_for_nobody_counts_against_host_memory() -> None:
    """Adapters that are only warmed are trimmed like all others."""
    cache = make(Reader(), SlowKernels(), host_bytes=50)
    for i in range(40):
        cache.prefetch(AdapterRef(id=str(i), path="/"))
    until(lambda: all(f.done() for f in cache._reading.values()))
    cache.prefetch(AdapterRef(id="last", path="/"))
    assert cache.num_host <= 3
    assert len(cache._reading) == 1
    cache.close()


def test_a_read_that_failed_is_tried_again_for_the_next_request() -> None:
    """An old failure is not the answer to a new question."""
    reader = Reader()
    cache = make(reader, SlowKernels())
    reader.error = InvalidAdapter("gone")
    cache.prefetch(REF)
    until(lambda: cache._reading["x"].done())
    with pytest.raises(InvalidAdapter, match="gone"):
        cache.pin(REF, 1)
    cache.prefetch(REF)
    until(lambda: cache._reading["x"].done())
    reader.error = None
    cache.prefetch(REF)
    until(lambda: cache.pin(REF, 1))
    cache.close()


def test_an_adapter_is_there_when_all_ranks_have_it() -> None:
    """Until then it is not used, and its pages are not given away, whoever leaves."""
    others: list[Future[None]] = []

    def elsewhere(ref: AdapterRef, first_page: int) -> Future[None]:
        assert first_page == 11
        others.append(Future())
        return others[-1]

    cache = make(Reader(), SlowKernels(), elsewhere=elsewhere)
    until(lambda: cache.pin(REF, 1))
    until(lambda: others)
    assert cache.packed("x") is None
    cache.unpin("x", 2)
    assert cache.oldest_idle() is None
    assert cache.idle_pages() == 0
    others[0].set_result(None)
    until(lambda: cache.oldest_idle() is not None)
    assert cache.first_page("x") == 11
    assert cache.packed("x") is not None
    cache.close()


def test_what_another_rank_cannot_lay_out_is_told_to_all_who_wait_and_tried_again_by_others() -> None:
    """The pages are free when the last of them has left."""
    answers: list[Future[None]] = [Future(), Future()]
    answers[0].set_exception(InvalidAdapter("rank 1 cannot read it"))
    answers[1].set_result(None)
    left = iter(answers)
    cache = make(Reader(), SlowKernels(), elsewhere=lambda ref, first_page: next(left))
    until(lambda: cache.pin(REF, 1))
    assert cache.pin(REF, 1)
    until(lambda: cache._resident["x"].laying_out.done())  # type: ignore[union-attr]
    for _ in range(2):
        with pytest.raises(InvalidAdapter, match="rank 1"):
            cache.packed("x")
        assert cache.pool.num_free == 11
        cache.unpin("x", 2)
    assert cache.pool.num_free == 16
    until(lambda: cache.pin(REF, 3))
    until(lambda: cache.packed("x") is not None)
    cache.close()
