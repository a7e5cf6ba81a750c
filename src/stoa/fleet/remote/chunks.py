"""What remotes say, as values: chunks of answers, and errors in their many forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from stoa.errors import EngineUnavailable, ReplicaLost
from stoa.fleet.remote.errors import ModelUnknown, NotCarried, Throttled
from stoa.fleet.remote.sse import SseEvent

DONE = "[DONE]"
_MOST_TOKENS = (1 << 31) - 1
_SHOWN = 300  # characters of a remote's words in ours
_QUIET_S = 1.0  # after a 429 that says nothing
_SPENT_S = 600.0  # after one that says the account is empty
_TEXT_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Usage(NamedTuple):
    """Tokens as the remote counts them; None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0


class Logprobs(msgspec.Struct, frozen=True):
    """Of /completions. Tokens are "token_id:N" where ids were asked for."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # counts as progress
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct, frozen=True):
    """Of /completions (text, token_ids) or /chat/completions (delta)."""

    index: int = 0
    text: str | None = None
    delta: Delta | None = None
    token_ids: list[int] | None = None
    logprobs: msgspec.Raw = msgspec.Raw()  # of either shape, or null
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Any = None  # see `read_usage`
    error: Any = None


_chunk = msgspec.json.Decoder(Chunk)
_any = msgspec.json.Decoder()
_logprobs = msgspec.json.Decoder(Logprobs)


def read_chunk(event: SseEvent, secret: str = "") -> Chunk:
    """Raises ReplicaLost where it is no chunk, and the error that the remote reports, without `secret`."""
    try:
        chunk = _chunk.decode(event.data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ReplicaLost(f"a chunk of its answer cannot be read: {error}") from None
    if event.name == "error" or chunk.error is not None:
        raise reported(chunk.error, 500, secret=secret)
    return chunk


def read_usage(found: Any) -> Usage:
    """Money and records go by it, so whatever is no count is as good as not said."""
    facts = found if isinstance(found, dict) else {}
    details = facts.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(_count(facts.get("prompt_tokens")), _count(facts.get("completion_tokens")), cached or 0)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def read_logprobs(raw: msgspec.Raw) -> Logprobs | None:
    """None where they are absent or of another shape."""
    try:
        return _logprobs.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def refusal(status: int, headers: Mapping[str, str], body: bytes, secret: str = "") -> EngineUnavailable:
    """The error that an HTTP answer other than 200 means. `secret` does not appear in it."""
    try:
        found = _any.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace")
    if isinstance(found, dict) and "error" in found:
        found = found["error"]
    if 300 <= status < 400:
        return ReplicaLost(f"it redirects ({status}), which is not followed; set its url to where it is")
    return reported(found, status, headers, secret=secret)


def reported(
    error: Any, status: int, headers: Mapping[str, str] | None = None, *, secret: str = ""
) -> EngineUnavailable:
    """`error`: what stands under "error", an object or text. A status inside it wins over `status`."""
    facts = error if isinstance(error, dict) else {"message": error}
    code = facts.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    elif facts.get("type") == "invalid_request_error" and status == 500:
        status = 404 if code == "model_not_found" else 400
    message = f"{status}: {shown(facts.get('message'), secret)}"
    if status == 429 or code in ("queue_full", "rate_limit_exceeded", "insufficient_quota"):
        empty = "insufficient_quota" in (code, facts.get("type"))
        return Throttled(message, retry_after_s=_SPENT_S if empty else retry_after_s(headers or {}))
    if status == 404 or code == "model_not_found":
        return ModelUnknown(message)
    if status in (400, 413, 415, 422):
        return NotCarried(message)
    if status == 503 and headers and "retry-after" in headers:
        return Throttled(message, retry_after_s=retry_after_s(headers))
    return ReplicaLost(message)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Of Retry-After, in seconds or as a date against the answer's own Date; what cannot be read means a second."""
    text = headers.get("retry-after", "").strip()
    try:
        if (seconds := float(text)) >= 0:
            return seconds
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, (then - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError):
        return _QUIET_S


def shown(message: Any, secret: str = "") -> str:
    """A remote's words in ours: one line of bounded length, without the secret that it may repeat."""
    text = message if isinstance(message, str) else "" if message is None else str(message)
    if secret:
        text = text.replace(secret, "[key]")
    return _TEXT_CONTROL.sub(" ", text).strip()[:_SHOWN] or "no reason given"
