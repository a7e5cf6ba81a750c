"""The engine: requests in, token events out, one `step` at a time.

A step is: schedule → build the batch → forward → sample → advance. It is driven from one thread; only
`wakeup` is touched by others.
"""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stoa.engine.accounting import Accounts, Book
from stoa.engine.batch import Batch, build_batch
from stoa.engine.bookkeeper import Bookkeeper, StepShares
from stoa.engine.config import EngineConfig
from stoa.engine.cost import row_cost
from stoa.engine.fairness import FairShares
from stoa.engine.grammar import GrammarCompiler
from stoa.engine.kernels import describe
from stoa.engine.limits import check_request, context_limit, fit_pool, pool_share
from stoa.engine.loading import Pairs, host_adapter_bytes, load, read_shard
from stoa.engine.memory.adapter_cache import AdapterCache
from stoa.engine.memory.blocks import BlockTable
from stoa.engine.memory.pool import PagePool
from stoa.engine.model.config import ModelConfig, read_model_config
from stoa.engine.parallel.shards import Shards, check_size
from stoa.engine.request import AdapterRef, FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from stoa.engine.sampling import sample
from stoa.engine.scheduler import Scheduler
from stoa.engine.sequence import Sequence
from stoa.engine.speculation import Speculator
from stoa.engine.stats import EngineStats
from stoa.engine.text import TextStream
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import InvalidRequest, OutOfMemory, StoaError

if TYPE_CHECKING:
    from stoa.engine.parallel.leader import Leader

_log = logging.getLogger(__name__)


class Engine:
    """One base model, many adapters. Not thread-safe: call everything from one thread.

    With `tensor_parallel` this is rank 0 of several: it decides, and the others compute with it.
    """

    def __init__(self, config: EngineConfig) -> None:
        folder = Path(config.model)
        self.config = config
        self.model: ModelConfig = read_model_config(folder)
        self.tokenizer = Tokenizer(folder, chat=False) if (folder / "tokenizer.json").exists() else None
        self.wakeup = threading.Event()
        self.max_model_len = context_limit(config, self.model)
        check_size(config, self.model)
        self.leader: Leader | None = _lead(config, self.wakeup)
        try:
            self._load()
        except BaseException:
            self._end_followers()
            raise
        self.blocks = BlockTable(self.pool)
        self.adapters = AdapterCache(
            self.pool,
            self.kernels,
            self.decoder.linears,
            self.decoder.module_keys(),
            self._read_adapter,
            host_bytes=host_adapter_bytes(config),
            wakeup=self.wakeup,
            elsewhere=self.leader.lay_out if self.leader is not None else None,
        )
        self.accounts = Accounts(self.pool.num_pages * self.pool.page_bytes)
        cost = row_cost(self.decoder.config, self.layout.page_bytes, config.block_size, config.device)
        self.scheduler = Scheduler(
            self.blocks,
            self.adapters,
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=config.step_rows,
            prefix_caching=config.prefix_caching,
            cost=cost,
            shares=FairShares(enabled=config.fairness != "off"),
            count_tokens=config.fairness == "tokens",
            step_target_s=config.step_target_ms / 1000,
            ttft_target_s=config.ttft_target_ms / 1000,
        )
        self.books = Bookkeeper(self.accounts, self.scheduler)
        self.speculator = Speculator(self.max_model_len, self.scheduler.times, cost.head)
        ends = {*self.model.eos_token_ids, *(self.tokenizer.eos_token_ids if self.tokenizer else ())}
        self.grammars: GrammarCompiler | None = None
        if self.tokenizer is not None:
            self.grammars = GrammarCompiler(
                self.tokenizer, self.model.vocab_size, end_tokens=ends, folder=folder, done=self.wakeup.set
            )
        self.end_tokens = frozenset(ends)
        self._live: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._totals = _Totals()
        self.idle = True

    @property
    def kernels_name(self) -> str:
        return self.kernels.name

    @property
    def notice(self) -> str:
        """What a person should know about how this engine runs, or ""."""
        said = [str(describe().get("reason") or "")]
        if self.max_model_len < context_limit(self.config, self.model):
            said.append(f"the pool holds {self.max_model_len} tokens of context; raise pool_gib for more")
        return "; ".join(filter(None, said))

    @property
    def has_requests(self) -> bool:
        """Is there something that `step` would do, or would say: that it cannot go on?"""
        return bool(self._live) or (self.leader is not None and self.leader.lost is not None)

    # -- requests

    def add_request(self, request: GenerationRequest) -> None:
        """Queues the request. Raises StoaError, leaving nothing behind, if it can never run."""
        if request.id in self._live:
            raise InvalidRequest(f"request id {request.id!r} is in use", param="id")
        check_request(request, self.model.vocab_size, self.max_model_len, has_text=self.tokenizer is not None)
        seed = request.params.seed
        seed = secrets.randbits(63) if seed is None else seed
        self._arrivals += 1
        book = self.accounts.open(request)
        seqs: list[Sequence] = []
        for index in range(request.n):
            if request.so_far and request.so_far[index] is None:
                continue
            parent = seqs[0] if seqs and not request.so_far else None
            seqs.append(self._sequence(request, index, seed, book, parent))
        self._live[request.id] = seqs
        for seq in seqs:
            self.scheduler.add(seq)
        self.idle = False

    def cancel(self, request_id: str) -> None:
        """Frees all choices of the request; no event follows. Unknown ids are ignored."""
        self._drop(request_id, "cancelled")
        self.books.close_ended()

    def _drop(self, request_id: str, outcome: FinishReason) -> None:
        seqs = self._live.pop(request_id, [])
        for seq in seqs:
            if not seq.done:
                seq.done = True
                self.scheduler.remove(seq)
        if seqs:
            self.books.ended(seqs[0].book, outcome)

    def warm(self, ref: AdapterRef) -> None:
        """Starts reading the adapter into host memory."""
        self.adapters.prefetch(ref)

    def forget(self, adapter_id: str) -> None:
        self.adapters.forget(adapter_id)
        if self.leader is not None:
            self.leader.forget(adapter_id)

    # -- the step

    def step(self) -> list[TokenEvent]:
        """Runs one step; returns its news. `idle` says afterwards whether there was nothing to do. Raises
        EngineUnavailable, now and ever after, when one of several ranks is gone."""
        if self.leader is not None:
            self.leader.check()
        self.books.begin_step()
        if self.config.speculation:
            self.speculator.draft(self.scheduler.running)
        plan = self.scheduler.schedule()
        events = [self._fail(seq, error) for seq, error in plan.failed]
        counts = {seq: count for seq, count in plan.counts.items() if not seq.done}  # siblings of the failed
        self.idle = not (counts or events or plan.preempted)
        if counts:
            batch = build_batch(counts, self.kernels, self.adapters.packed)
            shares, news = self._run(batch) if self.leader is None else self._run_together(self.leader, batch)
            events += news
            took_ns = self.books.end_step(shares)
            self._totals.steps += 1
            self._totals.step_seconds += took_ns / 1e9
        self.books.close_ended()
        return events

    def _run_together(self, leader: Leader, batch: Batch) -> tuple[StepShares, list[TokenEvent]]:
        try:
            self.decoder.reserve(len(batch.samples))
        except torch.OutOfMemoryError:
            return self.books.shares(batch), self._give_way(batch)  # the others have not heard of it
        with leader.together():
            leader.send_step(batch, self.adapters.first_page)
            hidden, logits = self._compute(batch)
            shares = self.books.shares(batch)
            return shares, self._take_in(batch, hidden, logits)

    def _run(self, batch: Batch) -> tuple[StepShares, list[TokenEvent]]:
        try:
            hidden, logits = self._compute(batch)
        except torch.OutOfMemoryError:
            return self.books.shares(batch), self._give_way(batch)
        shares = self.books.shares(batch)  # a GPU is at work meanwhile
        return shares, self._take_in(batch, hidden, logits)

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states of all rows, logits of those that are sampled."""
        hidden = self.decoder.forward(batch.token_ids, batch.rows, batch.lora, self.pool.arena, self.layout)
        picked = hidden.index_select(0, batch.sample_rows)
        return hidden, self.decoder.logits(picked, batch.sample_lora) if batch.sampled else picked

    def _take_in(self, batch: Batch, hidden: Tensor, logits: Tensor) -> list[TokenEvent]:
        events = []
        for i, (seq, count) in enumerate(zip(batch.seqs, batch.counts, strict=True)):
            self.scheduler.computed(seq, count - len(seq.drafts))
            if seq.request.pooling is not None:
                events += self._pool(seq, hidden[batch.starts[i] : batch.starts[i + 1]])
        if not batch.sampled:
            return events
        for seq in batch.sampled:
            if seq.num_output == seq.num_resumed:
                self._totals.prompt_tokens += seq.num_prompt
                self._fork_choices(seq)
        sampled = list(zip(batch.sampled, batch.sample_counts, strict=True))
        wanted = [(seq, len(seq.tokens) + i) for seq, count in sampled for i in range(count)]
        tokens, logprobs = sample(self.kernels, logits, wanted, sorted(self.end_tokens))
        at = 0
        for seq, count in sampled:
            events += self._accept(seq, tokens[at : at + count], logprobs[at : at + count])
            at += count
        return events

    def _give_way(self, batch: Batch) -> list[TokenEvent]:
        """The device had no memory for the step, and nothing of it counts: later ones are smaller."""
        rows = batch.starts[-1]
        for seq in batch.seqs:
            seq.drafts = []
        alone = self.scheduler.shrink(rows)
        _log.warning(
            "a step of %d rows found no memory on %s; steps now have %d rows at most. Lower pool_gib or "
            "max_batch_tokens to keep room", rows, self.kernels.device, self.scheduler.max_batch_tokens,
        )  # fmt: skip
        if alone is None:
            return []
        return [
            self._fail(
                alone,
                OutOfMemory("the device has no memory left for a step; lower pool_gib", param="pool_gib"),
            )
        ]

    def _accept(
        self, seq: Sequence, tokens: list[int], logprobs: list[TokenLogprob | None]
    ) -> list[TokenEvent]:
        """The first token, and the one after each draft that equals the token before it."""
        if seq.done:  # a sibling has failed
            return []
        if seq.failure is not None:
            return [self._fail(seq, seq.failure)]
        drafts, seq.drafts = seq.drafts, []
        events = [self._advance(seq, tokens[0], logprobs[0])]
        for i, draft in enumerate(drafts):
            if seq.done or draft != tokens[i]:
                break
            self.scheduler.computed(seq, 1)
            events.append(self._advance(seq, tokens[i + 1], logprobs[i + 1]))
        if drafts:
            self.speculator.judge(seq, len(drafts), len(events) - 1)
        self._totals.generation_tokens += len(events)
        return events

    def _fork_choices(self, parent: Sequence) -> None:
        for child in self._live[parent.request.id]:
            if child.parent is parent:
                self.scheduler.fork(parent, child)

    def _advance(self, seq: Sequence, token: int, logprob: TokenLogprob | None) -> TokenEvent:
        """Appends the token and finds out whether the sequence ends with it."""
        seq.tokens.append(token)
        self.books.token(seq)
        try:
            text, reason, stop = self._consume(seq, token)
        except InvalidRequest as error:
            return self._fail(seq, error)
        if reason is None and (
            seq.num_output >= seq.params.max_tokens or len(seq.tokens) >= self.max_model_len
        ):
            reason = "length"
        if reason is not None and seq.text is not None and not isinstance(stop, str):
            text += seq.text.finish()
        event = TokenEvent(
            request_id=seq.request.id,
            index=seq.index,
            token_ids=[token],
            text=text,
            logprobs=[logprob] if logprob else None,
            finish_reason=reason,
            stop_reason=stop,
            prompt_tokens=seq.num_prompt if reason else 0,
            cached_tokens=seq.num_cached if reason else 0,
            completion_tokens=seq.num_output if reason else 0,
        )
        if reason is not None:
            self._finish(seq, reason)
        return event

    def _consume(self, seq: Sequence, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """Text released by the token, and why the sequence stops at it, if it does."""
        p = seq.params
        if token in p.stop_token_ids or (token in self.end_tokens and not p.ignore_eos):
            return "", "stop", token if token in p.stop_token_ids else None
        if seq.grammar is not None and not seq.grammar.accept(token):
            raise InvalidRequest(
                "the output format leaves nothing that could follow", param="response_format"
            )
        text, stop = "", None
        if seq.text is not None:
            text, stop = seq.text.push(token, may_stop=seq.num_output >= p.min_tokens)
        if stop is not None:
            return text, "stop", stop
        if seq.grammar is not None and seq.grammar.finished:
            return text, "stop", None
        return text, None, None

    def _pool(self, seq: Sequence, hidden: torch.Tensor) -> list[TokenEvent]:
        for row in hidden.double().cpu().numpy():  # one after the other: chunks change no bit
            seq.pooled = row if seq.pooled is None else seq.pooled + row
        assert seq.pooled is not None
        if seq.todo:
            return []
        mean = seq.pooled / seq.num_prompt
        self._totals.prompt_tokens += seq.num_prompt
        self._finish(seq, "stop")
        return [
            TokenEvent(
                request_id=seq.request.id,
                finish_reason="stop",
                prompt_tokens=seq.num_prompt,
                embedding=mean.tolist(),
            )
        ]

    # -- ends

    def _finish(self, seq: Sequence, outcome: FinishReason) -> None:
        seq.done = True
        self.scheduler.remove(seq)
        if all(s.done for s in self._live[seq.request.id]):
            del self._live[seq.request.id]
            self.books.ended(seq.book, outcome)

    def _fail(self, seq: Sequence, error: StoaError) -> TokenEvent:
        """`seq` cannot go on; its siblings cannot either."""
        self._drop(seq.request.id, "error")
        return TokenEvent(
            request_id=seq.request.id,
            index=seq.index,
            finish_reason="error",
            error=error.message,
            error_code=error.code or error.type,
            error_param=error.param,
            prompt_tokens=seq.num_prompt,
        )

    def stats(self) -> EngineStats:
        s, totals = self.scheduler, self._totals
        waiting = [q for q in s.waiting if q.request.adapter and not q.pinned]
        return EngineStats(
            running=len(s.running),
            waiting=len(s.waiting),
            waiting_for_adapter=len(waiting),
            kv_usage=self.blocks.num_held / self.pool.num_pages,
            pool_pages=self.pool.num_pages,
            page_bytes=self.pool.page_bytes,
            prefix_query_tokens=s.prefix_query_tokens,
            prefix_hit_tokens=s.prefix_hit_tokens,
            preemptions=s.preemptions,
            prompt_tokens=totals.prompt_tokens,
            generation_tokens=totals.generation_tokens,
            draft_tokens=self.speculator.drafted,
            accepted_draft_tokens=self.speculator.accepted,
            steps=totals.steps,
            step_seconds=totals.step_seconds,
            adapters_resident=self.adapters.num_resident,
            adapters_host=self.adapters.num_host,
            adapter_loads=self.adapters.loads,
            adapter_evictions=self.adapters.evictions,
            running_adapters=sorted({q.adapter_id for q in s.running if q.adapter_id}),
            waiting_adapters=sorted({q.adapter_id for q in s.waiting if q.adapter_id}),
            held_adapters=self.adapters.held,
        )

    def close(self) -> None:
        self._end_followers()  # before those who wait for them
        self.adapters.close()
        if self.grammars is not None:
            self.grammars.close()

    # -- set-up

    def _sequence(
        self, request: GenerationRequest, index: int, seed: int, book: Book, parent: Sequence | None
    ) -> Sequence:
        p = request.params
        text = None
        if self.tokenizer is not None and request.pooling is None:
            text = TextStream(self.tokenizer, p.stop, p.include_stop, p.skip_special_tokens)
        seq = Sequence(
            request,
            index,
            self._arrivals,
            seed + index,
            block_size=self.config.block_size,
            text=text,
            book=book,
            parent=parent,
        )
        if text is not None:
            for i, token in enumerate(seq.tokens[seq.num_prompt :]):
                text.push(token, may_stop=i + 1 >= p.min_tokens)  # what it shows has been shown
        if parent is not None:
            seq.compiling = parent.compiling
        elif text is not None and p.grammar is not None and self.grammars is not None:
            seq.compiling = self.grammars.submit(p.grammar, request.project)
        return seq

    def _load(self) -> None:
        """Weights and pool, here and on all other ranks."""
        config, leader = self.config, self.leader
        loaded = load(config, Shards(self.model, 0, config.tensor_parallel), self.max_model_len)
        self.kernels, self.decoder, self.layout = loaded.kernels, loaded.decoder, loaded.layout
        device, page_bytes = self.kernels.device, self.layout.page_bytes
        if leader is None:
            loaded.rehearse(config)
            available = pool_share(device)
        else:
            self.decoder.group = leader.join(device)
            with leader.together():
                loaded.rehearse(config)
            available = leader.least(pool_share(device, leader.size))
        pages, self.max_model_len = fit_pool(config, self.max_model_len, page_bytes, available)
        self.pool = PagePool(pages, page_bytes, device)
        if leader is not None:
            leader.open_pool(pages)

    def _end_followers(self) -> None:
        if self.leader is not None:
            self.leader.close()

    def _read_adapter(self, ref: AdapterRef) -> Pairs:
        if self.leader is not None:
            self.leader.prefetch(ref)
        return read_shard(ref, self.decoder.shards, self.config.max_lora_rank)


def _lead(config: EngineConfig, wakeup: threading.Event) -> Leader | None:
    if config.tensor_parallel == 1:
        return None
    from stoa.engine.parallel.leader import Leader  # torch.distributed, which only several ranks need

    return Leader(config, wakeup)


class _Totals:
    """Counters since start."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.steps = 0
        self.step_seconds = 0.0
