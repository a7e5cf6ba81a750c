"""A remote's chunks become the events that an engine would have sent.

Where the remote says which tokens it has chosen, they are the truth: text is made of them here, as an engine does,
so that an answer can go on elsewhere (or come from elsewhere) without a seam, stop strings across it included.
Where it sends text only, text is all there is, and nobody can go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from stoa.engine.request import FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from stoa.engine.text import TextStream
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import ReplicaLost
from stoa.fleet.remote.chunks import Choice, Chunk, Usage, read_logprobs, read_usage
from stoa.fleet.remote.errors import NotCarried

_GIVEN_UP = ("abort", "error", "cancelled", "timeout")
_ID = "token_id:"
_MOST_AT_ONCE = 16  # pieces of a choice in one chunk; there should be one
_CHARS_PER_TOKEN = 4  # of text whose tokens nobody has counted


class _Piece(NamedTuple):
    """One token with the text that it shows, as an engine tells it; or text alone."""

    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob] | None = None


class _Taken(NamedTuple):
    """News of one chunk."""

    pieces: list[_Piece]
    reason: FinishReason | None
    stop_reason: int | str | None


class _Choice:
    """One choice: what it has had, and how its tokens become text."""

    def __init__(self, request: GenerationRequest, index: int, tokenizer: Tokenizer | None) -> None:
        """`tokenizer` None: there will be text only."""
        p = request.params
        self.index = index
        self.ended = False
        self.chars = 0
        self.text_only = tokenizer is None
        self._params = p
        had = (request.so_far[index] if request.so_far else None) or []
        self.tokens = len(had)
        self.new_tokens = 0
        self._text: TextStream | None = None
        if tokenizer is not None:
            self._text = TextStream(tokenizer, p.stop, p.include_stop, p.skip_special_tokens)
            for i, token in enumerate(had):
                self._text.push(token, may_stop=i + 1 >= p.min_tokens)  # what it shows has been shown

    def take(self, choice: Choice) -> _Taken:
        if self._text is None or self.text_only or (choice.token_ids is None and choice.text):
            return self._take_text(choice)
        ids, texts, matched = [], [], None
        for token in choice.token_ids or ():
            self.tokens += 1
            ids.append(token)
            text, matched = self._text.push(token, may_stop=self.tokens >= self._params.min_tokens)
            texts.append(text)
            if matched is not None or self.tokens >= self._params.max_tokens:
                break
        self.new_tokens += len(ids)
        pieces = [
            _Piece([token], text, logprobs)
            for token, text, logprobs in zip(ids, texts, self._logprobs(choice, ids), strict=True)
        ]
        if matched is not None:
            return _Taken(pieces, "stop", matched)
        reason = finish_of(choice.finish_reason)
        if reason is None and self.tokens >= self._params.max_tokens:
            reason = "length"
        if reason is not None and (rest := self._text.finish()):
            last = pieces.pop() if pieces else _Piece([], "")
            pieces.append(last._replace(text=last.text + rest))
        return _Taken(pieces, reason, choice.stop_reason if reason == "stop" else None)

    def _take_text(self, choice: Choice) -> _Taken:
        delta = choice.delta
        text = choice.text or (delta and (delta.content or delta.refusal)) or ""
        if text and self.tokens and not self.text_only:
            raise ReplicaLost("it does not say which tokens follow those that the answer has had elsewhere")
        self.text_only = self.text_only or bool(text)
        self.chars += len(text)
        pieces = [_Piece([], text)] if text else []
        return _Taken(pieces, finish_of(choice.finish_reason), choice.stop_reason)

    def _logprobs(self, choice: Choice, ids: list[int]) -> Sequence[list[TokenLogprob] | None]:
        """Of each token."""
        k = self._params.logprobs
        if k is None or not ids:
            return [None] * len(ids)
        found = read_logprobs(choice.logprobs)
        try:
            if found is None:
                raise ValueError("there are none")
            tops = found.top_logprobs or [{}] * len(found.tokens)
            rows = list(zip(found.tokens, found.token_logprobs, tops, strict=True))[: len(ids)]
            read = [TokenLogprob(_token_id(t), _number(p), _most_likely(top or {}, k)) for t, p, top in rows]
            if [r.token_id for r in read] != ids:
                raise ValueError("they are of other tokens")
        except ValueError as error:
            raise NotCarried(f"logprobs were asked for, but its answer is no use: {error}") from None
        return [[logprob] for logprob in read]

    def counted(self) -> int:
        """Tokens made there, as well as can be told here."""
        return -(-self.chars // _CHARS_PER_TOKEN) if self.text_only else self.new_tokens


class AnswerReader:
    """Of one HTTP answer. Their choice i is our choice `indexes[i]`."""

    def __init__(self, request: GenerationRequest, indexes: list[int], tokenizer: Tokenizer | None) -> None:
        """`tokenizer` None: the remote has tokens of its own, and counts the prompt by them."""
        self._request = request
        self._choices = [_Choice(request, i, tokenizer) for i in indexes]
        self._own_tokens = tokenizer is not None
        self.began = False  # the remote has said something
        self._usage = Usage()
        self._last: TokenEvent | None = None  # held until the usage is known

    @property
    def complete(self) -> bool:
        """All choices have ended; the rest is the usage, if the remote sends it."""
        return all(c.ended for c in self._choices)

    @property
    def usage_known(self) -> bool:
        return self._usage.prompt_tokens is not None and self._usage.completion_tokens is not None

    @property
    def shown(self) -> bool:
        """Has anything been handed on?"""
        return any(c.new_tokens or c.chars for c in self._choices)

    @property
    def new_tokens(self) -> int:
        """Completion tokens made there, as clients and records count them."""
        return sum(c.new_tokens for c in self._choices) if self.resumable else self.completion_tokens

    @property
    def resumable(self) -> bool:
        """Could another replica go on from what has been handed on?"""
        return not any(c.text_only and c.chars for c in self._choices)

    @property
    def completion_tokens(self) -> int:
        told = self._usage.completion_tokens
        return told if told is not None else sum(c.counted() for c in self._choices)

    @property
    def prompt_tokens(self) -> int:
        """As the remote counts them: tokens that came from elsewhere are prompt there."""
        told = self._usage.prompt_tokens
        had = sum(len(self._request.so_far[c.index] or ()) for c in self._choices if self._request.so_far)
        return told if told is not None else len(self._request.prompt_token_ids) + had

    @property
    def cached_tokens(self) -> int:
        return self._usage.cached_tokens

    def read(self, chunk: Chunk) -> list[TokenEvent]:
        """News of this chunk. The event that ends the last choice comes from `finish`. Raises ReplicaLost."""
        self.began = True
        if chunk.usage is not None:
            self._usage = read_usage(chunk.usage)  # some send it with every chunk: the last one counts
        if len(chunk.choices) > _MOST_AT_ONCE * len(self._choices):
            raise ReplicaLost(f"a chunk of its answer has {len(chunk.choices)} choices")
        events: list[TokenEvent] = []
        for choice in chunk.choices:
            if not 0 <= choice.index < len(self._choices):
                raise ReplicaLost(f"it answers with choice {choice.index}, which nobody has asked for")
            mine = self._choices[choice.index]
            if not mine.ended:
                events += self._news(mine, choice)
        return events

    def _news(self, mine: _Choice, choice: Choice) -> list[TokenEvent]:
        name, (pieces, reason, stop_reason) = self._request.id, mine.take(choice)
        events = [
            TokenEvent(
                request_id=name, index=mine.index, token_ids=p.token_ids, text=p.text, logprobs=p.logprobs
            )
            for p in pieces
        ]
        if reason is None:
            return events
        mine.ended = True
        end = TokenEvent(
            request_id=name,
            index=mine.index,
            finish_reason=reason,
            stop_reason=stop_reason,
            error="the remote's filter ended the answer" if reason == "error" else None,
            error_code="content_filter" if reason == "error" else None,
            completion_tokens=0 if mine.text_only else mine.tokens,
            prompt_tokens=len(self._request.prompt_token_ids),
        )
        if self.complete:
            self._last = end
            return events
        return [*events, end]

    def finish(self) -> list[TokenEvent]:
        """The last choice's end, with what the remote said of use. Raises ReplicaLost if choices are open."""
        if not self.complete or self._last is None:
            raise ReplicaLost("its stream ended before the answer was complete")
        last, prompt = self._last, len(self._request.prompt_token_ids)
        if not self._own_tokens:
            prompt = self.prompt_tokens
        completion = last.completion_tokens if self._own_tokens and self.resumable else self.completion_tokens
        return [
            msgspec.structs.replace(
                last,
                prompt_tokens=prompt,
                cached_tokens=min(self.cached_tokens, prompt),
                completion_tokens=completion,
            )
        ]


def finish_of(reason: str | None) -> FinishReason | None:
    """A remote's finish_reason in our words. Raises ReplicaLost where the remote has given the request up."""
    if not reason:
        return None
    if reason in _GIVEN_UP:
        raise ReplicaLost(f"it gave the request up ({reason})")
    if reason == "content_filter":
        return "error"
    return "length" if reason in ("length", "max_tokens") else "stop"


def _token_id(text: str) -> int:
    if not text.startswith(_ID):
        raise ValueError("they do not name tokens by id")
    try:
        return int(text.removeprefix(_ID))
    except ValueError:
        raise ValueError("an id is no number") from None


def _number(value: float | None) -> float:
    if value is None:
        raise ValueError("one is missing")
    return value


def _most_likely(top: dict[str, float], k: int) -> list[tuple[int, float]]:
    """The k most likely; remotes add the chosen token where it is not among them."""
    return sorted(((_token_id(t), p) for t, p in top.items()), key=lambda e: -e[1])[:k]
