"""Requests that begin inside this process: they take the same way through the application as any other, but it is known
already who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Scope

from stoa.batches import Answer, Asked


class Inside:
    """Implements `batches.Sender`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def send(self, asked: Asked) -> Answer:
        exchange = _Exchange(asked.body)
        await self._app(_scope(asked), exchange.receive, exchange.send)
        return Answer(exchange.status, b"".join(exchange.chunks), exchange.retry_after_s)


def _scope(asked: Asked) -> Scope:
    headers = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(asked.body)),
        "x-request-id": asked.request_id,
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": ("localhost", None),
        "stoa.principal": asked.principal,
        "stoa.service_class": asked.service_class,
        "stoa.facts": {"batch": asked.batch_id},
    }


class _Exchange:
    """The client's side of one request, which never leaves before its answer."""

    def __init__(self, body: bytes) -> None:
        self.status = 0
        self.retry_after_s: float | None = None
        self.chunks: list[bytes] = []
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.retry_after_s = _retry_after_s(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.chunks.append(message.get("body", b""))


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    return next((float(value) for name, value in headers if name.lower() == b"retry-after"), None)
