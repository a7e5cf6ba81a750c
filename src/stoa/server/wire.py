"""Bodies in, bodies out: reading JSON within the limit, server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoa.errors import RequestTimeout, RequestTooLarge
from stoa.server.problems import undecodable

T = TypeVar("T")
_encoder = msgspec.json.Encoder()
encode = _encoder.encode
DONE = b"data: [DONE]\n\n"
_BODY_S = 60


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


def sse(value: Any) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def body_reader(kind: type[T]) -> Callable[[Request, int], Coroutine[Any, Any, T]]:
    """A function that reads a request's JSON body as `kind`, refusing what does not fit by name."""
    decoder = msgspec.json.Decoder(kind)

    async def read(request: Request, limit: int) -> T:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await _read_body(request, limit)
        except TimeoutError:
            raise RequestTimeout(f"The request body did not arrive within {_BODY_S} s") from None
        request.scope["stoa.body_bytes"] = len(body)
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise undecodable(error) from None

    return read


def body_bytes(request: Request) -> int:
    """Size of the body that a body reader has read."""
    return int(request.scope["stoa.body_bytes"])


async def _read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes are taken in; a client that announces more is refused at once."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is too large; accepted: up to {limit} bytes")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client leaves first, the work is cancelled and ClientDisconnect raised."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Closing(Protocol):
    async def close(self) -> None: ...


class EventStream(Response):
    """Server-sent events. Each item of `chunks` is sent as it comes and may hold several events; `chunks` and
    what it reads from are closed in any case, also when the client leaves before the first."""

    def __init__(self, chunks: AsyncIterator[bytes], source: Closing, headers: Mapping[str, str]) -> None:
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._chunks = chunks
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        finally:
            await close(self._chunks)
            await self._source.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def close(stream: AsyncIterator[Any]) -> None:
    """Ends an async generator, so that its own `finally` runs now."""
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()
