"""What both completion endpoints answer with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stoa.engine.request import TokenLogprob
from stoa.engine.tokenizer import Tokenizer
from stoa.server.generation import Piece, Usage

LOWEST_LOGPROB = -9999.0  # JSON has no infinity


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage_body(usage: Usage) -> UsageBody:
    total = usage.prompt_tokens + usage.completion_tokens
    return UsageBody(usage.prompt_tokens, usage.completion_tokens, total, PromptDetails(usage.cached_tokens))


def shown_logprobs(piece: Piece, tokenizer: Tokenizer) -> Sequence[TokenLogprob]:
    """Without the end token, which is no part of the text."""
    found = piece.logprobs
    if piece.finish_reason == "stop" and not isinstance(piece.stop_reason, str) and found:
        last = found[-1].token_id
        if last in tokenizer.eos_token_ids or last == piece.stop_reason:
            return found[:-1]
    return found


# -- chat


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


def chat_logprobs(found: Sequence[TokenLogprob], tokenizer: Tokenizer) -> ChatLogprobs:
    content = []
    for entry in found:
        top = [TopLogprob(*_token(t, p, tokenizer)) for t, p in entry.top]
        content.append(ChatLogprob(*_token(entry.token_id, entry.logprob, tokenizer), top))
    return ChatLogprobs(content)


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> tuple[str, float, list[int]]:
    text = tokenizer.token_text(token_id)
    return text, max(logprob, LOWEST_LOGPROB), list(tokenizer.token_bytes(token_id))


# -- completions


class TextLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def text_logprobs(
    found: Sequence[TokenLogprob], tokenizer: Tokenizer, offset: int, *, by_id: bool = False
) -> tuple[TextLogprobs, int]:
    """`offset`: where in the text the first token begins. Returns also where the next one will. `by_id`: tokens are
    called "token_id:N"."""

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if by_id else tokenizer.token_text(token_id)

    tokens = [name(entry.token_id) for entry in found]
    offsets = []
    for entry in found:
        offsets.append(offset)
        offset += len(tokenizer.token_text(entry.token_id))
    top: list[dict[str, float]] = []
    for entry, token in zip(found, tokens, strict=True):
        likely = {name(t): max(p, LOWEST_LOGPROB) for t, p in reversed(entry.top)}
        top.append({token: max(entry.logprob, LOWEST_LOGPROB)} | dict(reversed(likely.items())))
    chosen = [max(entry.logprob, LOWEST_LOGPROB) for entry in found]
    return TextLogprobs(tokens, chosen, top, offsets), offset
