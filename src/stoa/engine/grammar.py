"""Constraints on the output (JSON, schema, regex, Lark), compiled and followed by llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from stoa.engine.grammar_probe import GrammarProbe
from stoa.engine.request import Grammar
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import InvalidRequest

_MAX_SOURCE_CHARS = 200_000
_COMPILERS = 2  # grammars compiled at once
# Bounded, or a model that likes spaces would fill its budget with them.
_WHITESPACE = r"(\n {0,16}| )?"  # between JSON tokens: one space, or a line break and its indentation


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the `cache_size` last used. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int | None = None,
        *,
        end_tokens: Collection[int] = (),
        cache_size: int = 256,
        folder: Path | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """`vocab_size`: number of logits of the model, where it differs from the tokenizer's;
        `end_tokens`: those of the model, beside the tokenizer's; `folder`: of the tokenizer, for `submit`,
        which calls `done` from another thread when a grammar is ready."""
        self.vocab_size = vocab_size or tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._end_tokens = sorted({*tokenizer.eos_token_ids, *end_tokens})
        self._cache_size = cache_size
        self._cache: OrderedDict[tuple[str, Grammar], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._ll: LLTokenizer | None = None
        self._done = done
        self._threads = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammar")
        self._probes = [
            GrammarProbe(folder, self.vocab_size, self._end_tokens) for _ in range(_COMPILERS) if folder
        ]

    def compile(self, grammar: Grammar, project: str = "") -> GrammarState:
        """The state before the first token. Raises InvalidRequest(param="response_format") and says why. What another
        project has compiled is not used: how long it takes tells nobody of others."""
        key = (project, grammar)
        with self._lock:
            matcher = self._cache.get(key)
            if matcher is not None:
                self._cache.move_to_end(key)
        if matcher is None:
            matcher = self._build(grammar)
            with self._lock:
                self._cache[key] = matcher
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        return GrammarState(matcher.deep_copy(), self.vocab_size)

    def submit(self, grammar: Grammar, project: str = "") -> Future[GrammarState]:
        """As `compile`, but off this thread, and tried first where it can do no harm."""
        future: Future[GrammarState]
        with self._lock:
            known = (project, grammar) in self._cache
        if known:
            future = Future()
            future.set_result(self.compile(grammar, project))
            return future
        future = self._threads.submit(self._try_and_compile, grammar, project)
        future.add_done_callback(lambda _: self._done())
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            probes, self._probes = self._probes, []
        for probe in probes:
            probe.close()

    def _try_and_compile(self, grammar: Grammar, project: str) -> GrammarState:
        with self._lock:
            if not self._probes:
                raise _refusal("the service is shutting down")
            probe = self._probes.pop()
        try:
            probe.check(grammar)
        finally:
            with self._lock:
                self._probes.append(probe)
        return self.compile(grammar, project)

    def _build(self, grammar: Grammar) -> LLMatcher:
        if len(grammar.source) > _MAX_SOURCE_CHARS:
            raise _refusal(f"it has more than {_MAX_SOURCE_CHARS} characters")
        matcher = LLMatcher(self._ll_tokenizer(), _to_llguidance(grammar), log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher

    def _ll_tokenizer(self) -> LLTokenizer:
        """Made on first use: it takes about a second for a large vocabulary."""
        with self._lock:
            if self._ll is None:
                size = max(self.vocab_size, self._tokenizer.vocab_size)
                ends = [i for i in self._end_tokens if i < self._tokenizer.vocab_size]
                if not ends:
                    raise _refusal("this model names no end token")
                try:
                    self._ll = LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=ends)
                except Exception as error:  # the library raises what its parts raise
                    raise _refusal(f"this model's tokenizer cannot be constrained: {error}") from None
            return self._ll


class GrammarState:
    """How far one sequence has come in its grammar. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed_mask(self) -> NDArray[np.bool_]:
        """[vocab_size]: may the token come next? End tokens may where the output is complete.
        Raises InvalidRequest if the grammar has become too complex to follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())
        mask = np.unpackbits(bits, count=min(self._vocab_size, 8 * len(bits)), bitorder="little").view(
            np.bool_
        )
        if len(mask) < self._vocab_size:
            mask = np.concatenate([mask, np.zeros(self._vocab_size - len(mask), np.bool_)])
        return mask

    def accept(self, token_id: int) -> bool:
        """Takes the chosen token; false, and no change, if the grammar does not allow it. Raises
        InvalidRequest if the grammar has become too complex to follow."""
        allowed = self._matcher.validate_tokens([token_id]) == 1 and self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())
        return allowed

    @property
    def finished(self) -> bool:
        """Nothing but an end token could follow."""
        return self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """The output so far satisfies the grammar, though more might follow."""
        return self._matcher.is_accepting()

    def copy(self) -> GrammarState:
        """An independent state at the same place, for another choice of the same request."""
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)


def _to_llguidance(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    schema = {"type": "object"} if grammar.kind == "json_object" else _schema(grammar.source)
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _WHITESPACE})


def _schema(source: str) -> dict[str, object]:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"the schema is not JSON: {error}") from None
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise _refusal("a schema must be a JSON object")
    return schema


def _refusal(reason: str) -> InvalidRequest:
    reason = reason.partition("\n<state>")[0]  # what follows is for the library's developers
    if reason.startswith("NoExtension"):
        reason = "no text satisfies it"
    return InvalidRequest(f"the output format cannot be used: {reason[:1000]}", param="response_format")
