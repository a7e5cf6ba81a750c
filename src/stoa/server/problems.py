"""Errors as OpenAI writes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
import re
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stoa.engine.request import TokenEvent
from stoa.errors import (
    DatabaseUnavailable,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    StoaError,
    Unauthorized,
)


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


def error_body(error: StoaError) -> bytes:
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, error.type, error.param, error.code)))


def problem(error: StoaError) -> Response:
    """The response that an error becomes."""
    headers = {}
    if isinstance(error, QueueFull | RateLimited):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, EngineUnavailable | DatabaseUnavailable):
        headers["Retry-After"] = "1"
    elif isinstance(error, QuotaExceeded):
        headers["x-should-retry"] = "false"  # OpenAI's clients do as it says
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers |= error.headers
    return Response(error_body(error), error.status, headers, "application/json")


async def stoa_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoaError)
    return problem(error)


async def http_problem(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    code, message = "http_error", error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        code, message = "unknown_url", f"Unknown request URL: {where}; /docs lists what there is"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        code, message = "method_not_allowed", f"{where} is not allowed; accepted: {allowed}"
    body = ErrorBody(ErrorDetail(message, "invalid_request_error", None, code))
    return Response(msgspec.json.encode(body), error.status_code, error.headers, "application/json")


# -- errors that the engine reports in an event


def _by_code(kind: type[StoaError]) -> dict[str, type[StoaError]]:
    found = {kind.code: kind} if kind.code else {}
    for child in kind.__subclasses__():
        found |= {code: c for code, c in _by_code(child).items() if code not in found}
    return found


def event_error(event: TokenEvent) -> StoaError:
    """The error that ended a sequence, as if it had been raised here."""
    message, code = event.error or "the engine gave the request up", event.error_code
    if event.finish_reason == "cancelled":
        return EngineUnavailable(event.error or "the request was cancelled")
    kind = _by_code(StoaError).get(code or "")
    if kind is QueueFull:
        return QueueFull(message, retry_after_s=1)
    if kind is not None:
        return kind(message, param=event.error_param)
    if code == InvalidRequest.type:
        return InvalidRequest(message, param=event.error_param)
    return StoaError(message, code=code)


# -- bodies that do not decode

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_TYPES = re.compile(r"Expected `(.*)`, got `(.*)`$", re.DOTALL)
_ENUM = re.compile(r"Invalid enum value (.*)$", re.DOTALL)
_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def undecodable(error: Exception) -> InvalidRequest:
    """msgspec's and Python's complaints about a body, in the words of the API."""
    if isinstance(error, msgspec.ValidationError):
        return _invalid_field(str(error))
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"The request body is not valid UTF-8: {error.reason}")
    if isinstance(error, RecursionError):
        return InvalidRequest("The request body is nested too deeply")
    return InvalidRequest(f"The request body is not valid JSON: {error}")


def _invalid_field(text: str) -> InvalidRequest:
    what, _, where = text.partition(" - at ")
    path = where.strip("`").rpartition("`$")[2].removeprefix("$").removeprefix(".") or None
    if found := _UNKNOWN.match(what):
        name = found[1]
        if path is None:
            return InvalidRequest(f"Unrecognized request argument supplied: {name}", param=name)
        return InvalidRequest(f"Unknown parameter: '{path}.{name}'", param=f"{path}.{name}")
    if found := _MISSING.match(what):
        name = f"{path}.{found[1]}" if path else found[1]
        return InvalidRequest(f"Missing required parameter: '{name}'", param=name)
    if found := _TYPES.match(what):
        wanted = " or ".join(_WORDS.get(t, t) for t in found[1].split(" | ") if t != "null")
        got = _WORDS.get(found[2], found[2])
        subject = f"Invalid type for '{path}'" if path else "Invalid type for the request body"
        return InvalidRequest(f"{subject}: expected {wanted}, but got {got} instead", param=path)
    if found := _ENUM.match(what):
        return InvalidRequest(f"Invalid value for '{path}': {found[1]}", param=path)
    return InvalidRequest(f"Invalid value for '{path}': {what}" if path else what, param=path)
