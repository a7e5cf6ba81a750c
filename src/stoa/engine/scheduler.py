"""What runs in the next step, and who gives way when memory is short.

Decode rows go first, then prompts in chunks, in order of priority (service class, then arrival). Space is
made in this order, and only as far as needed:

    1. what nobody uses: the longest unused of cached prefix pages and idle adapters
    2. what only waits: adapters and pages held for sequences that are not running, newest first
    3. running sequences, newest first: their pages go, they are computed again later (same tokens: sampling
       depends on seed and position only)

The oldest running sequence is never preempted by another, so the engine always makes progress.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from stoa.engine.memory.adapter_cache import AdapterCache
from stoa.engine.memory.blocks import BlockTable
from stoa.engine.sequence import Sequence
from stoa.errors import OutOfMemory, StoaError


@dataclass
class StepPlan:
    """Rows of one step: how many of its `todo` tokens each sequence computes now."""

    counts: dict[Sequence, int] = field(default_factory=dict)
    failed: list[tuple[Sequence, StoaError]] = field(default_factory=list)
    preempted: bool = False


class Scheduler:
    """Holds all live sequences. `max_batch_tokens` bounds a step's rows, `max_num_seqs` its sequences."""

    def __init__(
        self,
        blocks: BlockTable,
        adapters: AdapterCache,
        *,
        max_num_seqs: int,
        max_batch_tokens: int,
        prefix_caching: bool,
    ) -> None:
        self.blocks = blocks
        self.adapters = adapters
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.prefix_caching = prefix_caching
        self.waiting: list[Sequence] = []  # by priority
        self.running: list[Sequence] = []  # by priority
        self.clock = 0
        self.preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0

    def add(self, seq: Sequence) -> None:
        if seq.request.adapter is not None:
            self.adapters.prefetch(seq.request.adapter)
        bisect.insort(self.waiting, seq, key=_priority)

    def remove(self, seq: Sequence) -> None:
        """The sequence is finished or cancelled; everything it held is given back."""
        (self.running if seq in self.running else self.waiting).remove(seq)
        self._release(seq)

    def schedule(self) -> StepPlan:
        self.clock += 1
        plan = StepPlan()
        preemptions = self.preemptions
        budget = self.max_batch_tokens
        for seq in sorted(self.running, key=lambda s: s.todo > 1):
            count = min(seq.todo, budget)
            if seq.drafts and not (
                count + len(seq.drafts) <= budget and self._take(seq, count + len(seq.drafts))
            ):
                seq.drafts = []
            count += len(seq.drafts)
            if count and seq in self.running and self._grow(seq, count, plan):
                plan.counts[seq] = count
            budget = self.max_batch_tokens - sum(plan.counts.values())
        plan.preempted = self.preemptions != preemptions
        if not plan.preempted:
            self._admit(plan, budget)
        return plan

    def computed(self, seq: Sequence, count: int) -> None:
        """`count` more tokens of `seq` have their keys and values in its pages now."""
        seq.num_computed += count
        if self.prefix_caching and seq.request.pooling is None:
            full = seq.num_computed // seq.block_size
            if full > seq.num_published:
                hashes = seq.block_hashes(full)
                for i in range(seq.num_published, full):
                    self.blocks.publish(seq.pages[i], hashes[i])
                seq.num_published = full

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The prompt is computed: `child` shares its full blocks and computes only the rest itself."""
        full = (parent.num_prompt - 1) // parent.block_size
        pages = parent.pages[:full]
        self.blocks.share(pages)
        for page in pages:
            child.add_page(page)
        child.num_computed = full * parent.block_size
        child.num_published = full
        child.parent = None

    # -- admission

    def _admit(self, plan: StepPlan, budget: int) -> None:
        slots = self.max_num_seqs - len(self.running)
        for seq in list(self.waiting):
            if slots <= 0 or budget <= 0:
                return
            if seq.parent is not None or any(seq.request is s.request for s, _ in plan.failed):
                continue
            try:
                if not seq.grammar_ready():
                    continue
                ready = self._adapter_ready(seq)
                count = self._start(seq, budget) if ready else 0
                if ready is None or (ready and not count):
                    self._refuse_if_hopeless(seq)
                    return  # no room: later arrivals must not take what this one waits for
            except StoaError as error:
                self.remove(seq)
                seq.done = True
                plan.failed.append((seq, error))
                continue
            slots -= seq.pinned or bool(ready)
            if ready:  # else it is still being read, and only its own requests wait
                plan.counts[seq] = count
                budget -= count

    def _adapter_ready(self, seq: Sequence) -> bool | None:
        """True: none needed, or pinned and laid out. False: on its way. None: no room for it."""
        ref = seq.request.adapter
        if ref is None:
            return True
        while not seq.pinned:
            seq.pinned = self.adapters.pin(ref, self.clock)
            if seq.pinned:
                break
            if not self.adapters.pages_wanted(ref):
                return False
            if not self._evict_unused() and not self._release_waiting(below=seq):
                return None
        return self.adapters.packed(ref.id) is not None

    def _start(self, seq: Sequence, budget: int) -> int:
        """Moves `seq` to running with pages for its first rows; 0 if there is no room for its prompt."""
        if not seq.pages:
            self._hold_prefix(seq)
        count = min(seq.todo, budget)
        missing = seq.pages_for(len(seq.tokens) + 1) - len(seq.pages)
        while missing > self._available():
            if not self._release_waiting(below=seq):
                self.blocks.release(seq.drop_pages(), self.clock)
                return 0
        took = self._take(seq, count)
        assert took, "available pages could not be taken"
        self.waiting.remove(seq)
        bisect.insort(self.running, seq, key=_priority)
        if not seq.num_output:
            seq.num_cached = seq.num_computed
            self.prefix_query_tokens += seq.num_prompt
            self.prefix_hit_tokens += seq.num_computed
        return count

    def _hold_prefix(self, seq: Sequence) -> None:
        if not self.prefix_caching or seq.request.pooling is not None:
            return
        hashes = seq.block_hashes(
            (len(seq.tokens) - 1) // seq.block_size
        )  # the last token is always computed
        found = self.blocks.match(hashes)
        for page in self.blocks.hold(hashes[:found]):
            seq.add_page(page)
        seq.num_computed = found * seq.block_size
        seq.num_published = found

    def _refuse_if_hopeless(self, seq: Sequence) -> None:
        """Raises OutOfMemory if `seq` lacks room although it has the whole pool to itself."""
        ref, pool = seq.request.adapter, self.blocks.pool
        own = self.adapters.pages_of(ref.id) if ref is not None and seq.pinned else 0
        if not self.running and self._available() + own == pool.num_pages:
            raise OutOfMemory(
                f"a prompt of {seq.num_prompt} tokens and its adapter do not fit the pool of "
                f"{pool.num_pages * pool.page_bytes} bytes together; raise pool_gib",
                param="pool_gib",
            )

    # -- memory

    def _available(self) -> int:
        """Pages that are free or could be had by evicting what nobody uses."""
        return self.blocks.pool.num_free + self.blocks.num_cached + self.adapters.idle_pages()

    def _take(self, seq: Sequence, count: int) -> bool:
        """Pages for `count` more tokens, evicting only what nobody uses."""
        while len(seq.pages) < seq.pages_for(seq.num_computed + count):
            page = self.blocks.take()
            if page is not None:
                seq.add_page(page)
            elif not self._evict_unused():
                return False
        return True

    def _grow(self, seq: Sequence, count: int, plan: StepPlan) -> bool:
        """Pages for a running sequence; others give way to it, or it gives way itself."""
        while not self._take(seq, count):
            if self._release_waiting():
                continue
            victim = self.running[-1]
            plan.counts.pop(victim, None)
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _evict_unused(self) -> bool:
        prefix, adapter = self.blocks.oldest(), self.adapters.oldest_idle()
        if prefix is not None and (adapter is None or prefix <= adapter[0]):
            self.blocks.evict()
        elif adapter is not None:
            self.adapters.evict(adapter[1])
        else:
            return False
        return True

    def _release_waiting(self, below: Sequence | None = None) -> bool:
        """Takes back what the newest waiting sequence holds, if it comes after `below`."""
        for seq in reversed(self.waiting):
            if seq is below:
                return False
            if seq.pinned or (seq.pages and seq.parent is None):
                self._release(seq)
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(seq)
        self._release(seq)
        bisect.insort(self.waiting, seq, key=_priority)

    def _release(self, seq: Sequence) -> None:
        self.blocks.release(seq.drop_pages(), self.clock)
        if seq.pinned and seq.adapter_id is not None:
            self.adapters.unpin(seq.adapter_id, self.clock)
            seq.pinned = False


def _priority(seq: Sequence) -> tuple[int, int, int]:
    return seq.priority
