"""Watches the engine work and writes it down: to the accounts for the bill, to the scheduler for shares and forecasts."""

from __future__ import annotations

from dataclasses import dataclass

from stoa.engine.accounting import LOOK_NS, Accounts, Book
from stoa.engine.batch import Batch
from stoa.engine.fairness import MEMORY_WEIGHT
from stoa.engine.request import FinishReason
from stoa.engine.scheduler import Scheduler
from stoa.engine.sequence import Sequence


@dataclass(frozen=True)
class StepShares:
    """A step's sequences, their rows and work, and how many tokens each had before it."""

    seqs: list[Sequence]
    rows: list[int]
    works: list[float]
    outputs: list[int]


class Bookkeeper:
    """Of one engine."""

    def __init__(self, accounts: Accounts, scheduler: Scheduler) -> None:
        self._accounts = accounts
        self._scheduler = scheduler
        self._page_bytes = scheduler.blocks.pool.page_bytes
        self._started_ns = 0
        self._looked_ns = 0  # when all memory was booked last
        self._ended: list[Book] = []  # closed when the time of their last step is divided
        scheduler.letting_go = self._memory

    # -- a step

    def begin_step(self) -> None:
        self._started_ns = self._accounts.clock_ns()

    def shares(self, batch: Batch) -> StepShares:
        """Before the batch runs: work depends on what is computed already."""
        works = [self._scheduler.work(s, c) for s, c in zip(batch.seqs, batch.counts, strict=True)]
        return StepShares(batch.seqs, batch.counts, works, [s.num_output for s in batch.seqs])

    def end_step(self, step: StepShares) -> int:
        """Divides the time since `begin_step`; returns it."""
        now_ns = self._accounts.clock_ns()
        took_ns = now_ns - self._started_ns
        shares_ns = self._accounts.step([s.book for s in step.seqs], step.works, took_ns)
        for seq, rows, before, share_ns in zip(step.seqs, step.rows, step.outputs, shares_ns, strict=True):
            self._scheduler.charge(seq, rows, seq.num_output - before, share_ns)
            seq.book.first_step_ns = seq.book.first_step_ns or self._started_ns
            if not seq.done:
                seq.held_since_ns = seq.held_since_ns or self._started_ns
        self._scheduler.times.observe(sum(step.works), took_ns / 1e9)
        if now_ns - self._looked_ns > LOOK_NS:
            self._looked_ns = now_ns
            for seq in (*self._scheduler.running, *self._scheduler.waiting):
                if seq.pages or seq.pinned:
                    self._memory(seq)
        return took_ns

    def token(self, seq: Sequence) -> None:
        """`seq` has got one more."""
        book = seq.book
        book.completion_tokens += 1
        book.first_token_ns = book.first_token_ns or self._accounts.clock_ns()
        if seq.index == 0:
            book.cached_tokens = seq.num_cached

    def _memory(self, seq: Sequence) -> None:
        """What `seq` holds has been held since it was booked last."""
        now_ns = self._accounts.clock_ns()
        for_ns = now_ns - (seq.held_since_ns or now_ns)
        seq.held_since_ns = now_ns
        scheduler = self._scheduler
        kv = scheduler.blocks.share_of(seq.pages) * self._page_bytes
        adapter = scheduler.adapters.share_of(seq.adapter_id) if seq.pinned and seq.adapter_id else 0.0
        self._accounts.memory(seq.book, kv, adapter, for_ns)
        if not scheduler.count_tokens:
            share = (kv + adapter) / self._accounts.pool_bytes
            scheduler.shares_of(seq).charge(seq.project, MEMORY_WEIGHT * share * for_ns)

    # -- ends

    def ended(self, book: Book, outcome: FinishReason) -> None:
        """The last sequence of a request has ended."""
        book.outcome = outcome
        self._ended.append(book)

    def close_ended(self) -> None:
        for book in self._ended:
            self._accounts.close(book)
        self._ended.clear()
