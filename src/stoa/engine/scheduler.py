"""What runs in the next step, and who gives way when memory is short.

Service class goes first, then fairness among the projects of a class (`fairness.py`), then whether the first token can
still be in time (`deadlines.py`), then arrival. A step is filled in this order:

    1. interactive, projects within their share: rows of sequences that decode, then prompts in chunks, then new ones
    2. interactive, projects beyond their share: the same, as far as the step stays short (`step_target_s`)
    3. batch: the same with what is left; the step stays short as long as interactive requests come

With one project around there is no second part. Space is made in this order, and only as far as needed:

    1. what nobody uses: the longest unused of cached prefix pages and idle adapters
    2. what only waits: adapters and pages held for sequences that are not running, newest first
    3. running sequences, batch first, then those beyond their share and the newest: their pages go, they are computed
       again later (same tokens: sampling depends on seed and position only)

What is new takes space from what runs only if its class goes before. So a batch gives way within a step: an interactive
arrival finds it gone from the step's places and, where they are wanted, from the pages. The oldest running sequence is
never preempted by another of its class, so the engine always makes progress.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator

from stoa.engine.cost import RowCost, StepTime
from stoa.engine.deadlines import Deadlines
from stoa.engine.fairness import FairShares
from stoa.engine.memory.adapter_cache import AdapterCache
from stoa.engine.memory.blocks import BlockTable
from stoa.engine.plan import Group, StepPlan
from stoa.engine.sequence import Sequence
from stoa.errors import OutOfMemory, StoaError

_AUTO_TARGET = 3.0  # steps shared with projects beyond their share take so many times an empty one
_LEAST_WORK = 16.0  # but no less than so many rows
_OUTPUT_TOKEN = 2.0  # what VTC counts an output token as, in prompt tokens
_EXPECTED_S = 10.0  # the next interactive request may come so long after the last
_INTERACTIVE, _BATCH = 0, 1  # ranks of classes, the first of a priority


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
        cost: RowCost,
        shares: FairShares,
        count_tokens: bool = False,
        step_target_s: float = 0.0,
        ttft_target_s: float = 0.0,
    ) -> None:
        """`count_tokens`: shares are counted in tokens, not in what they cost. `ttft_target_s`: see
        `Deadlines`."""
        self.blocks = blocks
        self.adapters = adapters
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.prefix_caching = prefix_caching
        self.cost = cost
        self.shares = shares  # of the interactive class
        self._batch_shares = FairShares(shares.enabled, shares.clock)  # batches cost no interactive share
        self.count_tokens = count_tokens
        self.step_target_s = step_target_s
        self.deadlines = Deadlines(ttft_target_s)  # of the interactive class
        self.times = StepTime()
        self.waiting: list[Sequence] = []  # by priority
        self.running: list[Sequence] = []  # by priority
        self.clock = 0
        self.preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.letting_go: Callable[[Sequence], None] = lambda seq: None  # told before memory is given back
        self._over: frozenset[str] = frozenset()
        self._interactive_s = -math.inf  # when there was an interactive sequence last
        self._fixed_s = self._per_work_s = 0.0  # of a step, and of work in it

    def add(self, seq: Sequence) -> None:
        if seq.request.adapter is not None:
            self.adapters.prefetch(seq.request.adapter)
        self.shares_of(seq).arrive(seq.project, seq.request.weight)
        self.shares_of(seq).wait(seq.project)
        if seq.priority[0] == _INTERACTIVE:
            self.deadlines.arrived(seq, self.shares.clock())
        bisect.insort(self.waiting, seq, key=_priority)

    def remove(self, seq: Sequence) -> None:
        """The sequence is finished or cancelled; everything it held is given back."""
        if seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
            self.shares_of(seq).admitted(seq.project)
        self._release(seq)
        self._refund(seq)
        self.shares_of(seq).leave(seq.project)

    def schedule(self) -> StepPlan:
        self.clock += 1
        plan = StepPlan()
        preemptions = self.preemptions
        self._over = self.shares.over()
        self._fixed_s, self._per_work_s = self.times.fit()
        admitting = True
        for group in Group:
            plan.most_work = self._most_work() if self._keeps_short(group) else math.inf
            mine = [s for s in self.running if self._group(s) is group]
            for part in ([s for s in mine if s.todo == 1], [s for s in mine if s.todo > 1]):
                for seq in self._in_turn(part, group):
                    self._continue(seq, plan)
            gave_way = self.preemptions != preemptions
            stopped = plan.paused or (gave_way and group is Group.BATCH)
            admitting = admitting and not stopped and self._admit(plan, group)
        plan.preempted = self.preemptions != preemptions
        return plan

    def shrink(self, rows: int) -> Sequence | None:
        """A step of `rows` rows found no memory: steps have half as many from now on, and the sequence that gives way
        first is preempted. Returns it if it was alone, with a row no step can do without."""
        self.max_batch_tokens = max(1, rows // 2)
        victim = self._victim()
        if rows == 1:
            return victim
        self._preempt(victim)
        return None

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

    # -- classes and groups

    def shares_of(self, seq: Sequence) -> FairShares:
        """The counters of its class."""
        return self._batch_shares if seq.priority[0] == _BATCH else self.shares

    def _group(self, seq: Sequence) -> Group:
        if seq.priority[0] == _BATCH:
            return Group.BATCH
        return Group.OVER if seq.project in self._over else Group.WITHIN

    def _by_deadline(self, seqs: list[Sequence]) -> list[Sequence]:
        return self.deadlines.order(
            seqs,
            self.shares.clock(),
            step_s=self._fixed_s + self._per_work_s * self.max_batch_tokens,
            room=max(1, self.max_batch_tokens - len(self.running)),
        )

    def _in_turn(self, seqs: list[Sequence], group: Group) -> Iterator[Sequence]:
        shares = self._batch_shares if group is Group.BATCH else self.shares
        return shares.order(seqs, self._next_cost)

    def _keeps_short(self, group: Group) -> bool:
        """Whether the group may add to a step only as long as it stays short, for the sake of those before it."""
        if group is not Group.BATCH:
            return group is Group.OVER
        first = [*self.running[:1], *self.waiting[:1]]
        if any(seq.priority[0] == _INTERACTIVE for seq in first):
            self._interactive_s = self.shares.clock()
        return self.shares.clock() - self._interactive_s < _EXPECTED_S

    def _most_work(self) -> float:
        """Of a short step."""
        fixed_s = self._fixed_s
        target_s = max(self.step_target_s, _AUTO_TARGET * fixed_s)
        return max(_LEAST_WORK, (target_s - fixed_s) / self._per_work_s) if self._per_work_s else math.inf

    # -- what it costs

    def work(self, seq: Sequence, rows: int) -> float:
        """Of the next `rows` rows of `seq`, drafts among them."""
        sampled = max(0, rows - seq.todo + 1) if seq.request.pooling is None else 0
        adapter = self.adapters.share_of(seq.adapter_id) if seq.pinned and seq.adapter_id else 0.0
        return self.cost.work(rows, sampled, seq.num_computed + rows, adapter)

    def charge(self, seq: Sequence, rows: int, tokens: int, share_ns: int) -> None:
        """`seq` had `rows` rows in a step, which gave it `tokens` tokens and took `share_ns` for it. What admission
        charged ahead counts."""
        cost = rows - bool(tokens) + _OUTPUT_TOKEN * tokens if self.count_tokens else share_ns
        paid = min(seq.prepaid, cost)
        seq.prepaid -= paid
        self.shares_of(seq).charge(seq.project, cost - paid)

    def _refund(self, seq: Sequence) -> None:
        self.shares_of(seq).charge(seq.project, -seq.prepaid)
        seq.prepaid = 0.0

    def _cost_of(self, seq: Sequence, rows: int) -> float:
        """Of these rows, as `charge_step` will count them: nanoseconds, or tokens."""
        return float(rows) if self.count_tokens else 1e9 * self._per_work_s * self.work(seq, rows)

    def _next_cost(self, seq: Sequence) -> float:
        return self._cost_of(seq, min(seq.todo, self.max_batch_tokens))

    # -- rows

    def _continue(self, seq: Sequence, plan: StepPlan) -> None:
        """Rows for a running sequence, if the step has room for them."""
        if seq not in self.running:  # it has given way
            return
        rows = self._room(seq, plan)
        count = min(seq.todo, rows)
        if seq.drafts and not (
            count == seq.todo and count + len(seq.drafts) <= rows and self._take(seq, count + len(seq.drafts))
        ):
            seq.drafts = []
        count += len(seq.drafts)
        if not count:
            plan.paused = plan.paused or self._group(seq) is not Group.WITHIN
        elif self._grow(seq, count, plan):
            plan.add(seq, count, self.work(seq, count))

    def _room(self, seq: Sequence, plan: StepPlan) -> int:
        """Rows that the step can take of `seq`."""
        return plan.room(self.max_batch_tokens, self.max_num_seqs, lambda rows: self.work(seq, rows))

    # -- admission

    def _admit(self, plan: StepPlan, group: Group) -> bool:
        """New sequences of one group. False: nobody else may be admitted in this step."""
        mine = [s for s in self.waiting if self._group(s) is group and s.parent is None]
        # Those who come later may hold all places of a step; those before them then wait for no end of theirs.
        before = sum(group is Group.BATCH or s.priority[0] == _INTERACTIVE for s in self.running)
        slots = (2 if group is Group.WITHIN else 1) * self.max_num_seqs - before
        for seq in self._in_turn(self._by_deadline(mine), group):
            rows = self._room(seq, plan)
            if slots <= 0 or rows <= 0:
                break
            if any(seq.request is s.request for s, _ in plan.failed):
                continue
            try:
                if not seq.grammar_ready():
                    continue
                ready = self._adapter_ready(seq)
                count = self._start(seq, rows) if ready else 0
                if ready is None or (ready and not count):
                    self._refuse_if_hopeless(seq)
                    return False  # no room: later arrivals must not take what this one waits for
            except StoaError as error:
                self.remove(seq)
                seq.done = True
                plan.failed.append((seq, error))
                continue
            slots -= seq.pinned or bool(ready)
            if ready:  # else it is still being read, and only its own requests wait
                plan.add(seq, count, self.work(seq, count))
        return True

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
            if not self._evict_unused() and not self._make_room(seq):
                return None
        return self.adapters.packed(ref.id) is not None

    def _start(self, seq: Sequence, budget: int) -> int:
        """Moves `seq` to running with pages for its first rows; 0 if there is no room for its prompt."""
        if not seq.pages:
            self._hold_prefix(seq)
        count = min(seq.todo, budget)
        missing = seq.pages_for(len(seq.tokens) + 1) - len(seq.pages)
        while missing > self._available():
            if not self._make_room(seq):
                self.blocks.release(seq.drop_pages(), self.clock)
                return 0
        took = self._take(seq, count)
        assert took, "available pages could not be taken"
        self.waiting.remove(seq)
        bisect.insort(self.running, seq, key=_priority)
        self.deadlines.admitted(seq, self.shares.clock())
        self._pay_ahead(seq)
        if seq.num_output == seq.num_resumed:
            seq.num_cached = min(seq.num_computed, seq.num_prompt)
            self.prefix_query_tokens += seq.num_prompt
            self.prefix_hit_tokens += seq.num_computed
        return count

    def _pay_ahead(self, seq: Sequence) -> None:
        """The project is charged for the prompt now, so that its next sequence waits for its turn."""
        shares = self.shares_of(seq)
        shares.admitted(seq.project)
        seq.prepaid = self._cost_of(seq, seq.todo)
        shares.charge(seq.project, seq.prepaid)
        if seq.adapter_id and not self.count_tokens:
            shares.charge(seq.project, self.adapters.take_load_ns(seq.adapter_id))

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
        rank = seq.priority[0]
        while not self._take(seq, count):
            if self._release_waiting(after=(rank, -1)):
                continue
            victim = self._victim()
            plan.drop(victim)
            plan.paused = plan.paused or victim.priority[0] == rank
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _victim(self) -> Sequence:
        """Of the running: not the oldest, unless it is alone; one beyond its share before others; the newest."""
        return max(
            self.running[1:] or self.running,
            key=lambda s: (s.priority[0], s.project in self._over, s.priority),
        )

    def _evict_unused(self) -> bool:
        prefix, adapter = self.blocks.oldest(), self.adapters.oldest_idle()
        if prefix is not None and (adapter is None or prefix <= adapter[0]):
            self.blocks.evict()
        elif adapter is not None:
            self.adapters.evict(adapter[1])
        else:
            return False
        return True

    def _make_room(self, seq: Sequence) -> bool:
        """For one that is to be admitted: what those behind it hold while they wait, or the newest that runs if its
        class comes later. False: there is nothing to be had."""
        if self._release_waiting(after=seq.priority):
            return True
        if not self.running or self.running[-1].priority[0] <= seq.priority[0]:
            return False
        self._preempt(self.running[-1])
        return True

    def _release_waiting(self, after: tuple[int, ...]) -> bool:
        """Takes back what the newest waiting sequence holds, if it comes after that priority."""
        for seq in reversed(self.waiting):
            if seq.priority <= after:
                return False
            if seq.pinned or (seq.pages and seq.parent is None):
                self._release(seq)
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(seq)
        self._release(seq)
        self._refund(seq)
        self.shares_of(seq).wait(seq.project, new=False)
        bisect.insort(self.waiting, seq, key=_priority)

    def _release(self, seq: Sequence) -> None:
        """Gives back pages and pin."""
        if seq.pages or seq.pinned:
            self.letting_go(seq)
            seq.held_since_ns = 0
        self.blocks.release(seq.drop_pages(), self.clock)
        if seq.pinned and seq.adapter_id is not None:
            self.adapters.unpin(seq.adapter_id, self.clock)
            seq.pinned = False


def _priority(seq: Sequence) -> tuple[int, int, int]:
    return seq.priority
