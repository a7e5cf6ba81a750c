"""Lines of the output files, in OpenAI's form."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from stoa.batches.sender import Answer

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed: the batch was cancelled before.")


class Response(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    code: str
    message: str


class ResultLine(msgspec.Struct, frozen=True):
    id: str
    custom_id: str
    response: Response | None
    error: Failure | None


@dataclass(frozen=True)
class Tokens:
    input: int = 0
    cached: int = 0
    output: int = 0


@dataclass(frozen=True)
class Result:
    """Of one line. `text`: the line of the output file, without its end."""

    line: int
    failed: bool
    text: str
    tokens: Tokens = Tokens()


def result_of(line: int, custom_id: str, request_id: str, answer: Answer) -> Result:
    response = Response(answer.status, request_id, msgspec.Raw(_one_line(answer.body)))
    text = msgspec.json.encode(ResultLine(_new_id(), custom_id, response, None)).decode()
    failed = answer.status >= 400
    return Result(line, failed, text, Tokens() if failed else _tokens(answer.body))


def not_run(custom_id: str, why: tuple[str, str]) -> bytes:
    """The line of a request that did not come to its turn: EXPIRED or CANCELLED."""
    return msgspec.json.encode(ResultLine(_new_id(), custom_id, None, Failure(*why))) + b"\n"


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"


def _one_line(body: bytes) -> bytes:
    """JSON without line ends."""
    if b"\n" in body or b"\r" in body:
        return msgspec.json.encode(msgspec.json.decode(body))
    return body


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_read = msgspec.json.Decoder(_Body).decode


def _tokens(body: bytes) -> Tokens:
    try:
        usage = _read(body).usage
    except msgspec.MsgspecError:
        return Tokens()
    if usage is None:
        return Tokens()
    details = usage.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    return Tokens(usage.prompt_tokens, cached, usage.completion_tokens)
