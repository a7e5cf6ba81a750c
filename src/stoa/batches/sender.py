"""How a line's request is sent, and what its answer means for the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from stoa.engine.request import ServiceClass
from stoa.errors import StoaError
from stoa.tenancy.principal import Principal

_FAULTS = 3  # answers of a broken server to one line before that is its result
_LEAST_S, _MOST_S = 1.0, 30.0


@dataclass(frozen=True)
class Asked:
    """A request as if `principal` had sent it. `path`: "/v1/chat/completions" …"""

    principal: Principal
    path: str
    body: bytes
    request_id: str
    service_class: ServiceClass
    batch_id: str


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes  # JSON
    retry_after_s: float | None = None


class Sender(Protocol):
    """Implemented by `server.inside.Inside` and the tests' fake."""

    async def send(self, asked: Asked) -> Answer:
        """Cancel it to give the request up."""
        ...


@dataclass(frozen=True)
class Again:
    """The request was not done and is to be sent again. `full`: what has no room for it, the limits of the project or
    the engine."""

    after_s: float
    full: Literal["project", "engine"]


def again(answer: Answer, tries: int) -> Again | None:
    """None: the answer is the result. A spent budget is one: waiting does not help."""
    wait_s = min(_MOST_S, _LEAST_S * 2 ** min(tries, 10))
    if answer.status == 429:
        code = _code(answer)
        if code == "insufficient_quota":
            return None
        if code == "queue_full":
            return Again(answer.retry_after_s or wait_s, "engine")
        return Again(answer.retry_after_s or wait_s, "project")
    if answer.status == 503:
        return Again(max(wait_s, answer.retry_after_s or 0.0), "engine")
    if answer.status >= 500 and tries + 1 < _FAULTS:
        return Again(wait_s, "engine")
    return None


def refused(error: StoaError) -> Answer:
    """As the server would have answered."""
    detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return Answer(error.status, msgspec.json.encode({"error": detail}))


class _Detail(msgspec.Struct):
    code: str | None = None


class _Error(msgspec.Struct):
    error: _Detail


def _code(answer: Answer) -> str | None:
    try:
        return msgspec.json.decode(answer.body, type=_Error).error.code
    except msgspec.MsgspecError:
        return None
