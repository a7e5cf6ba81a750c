"""One question to a remote over HTTP, with every way it can go wrong as a typed error.

Time without progress is counted from the last chunk with something of an answer in it: comments and empty chunks keep
no request alive. Time that our own side takes between chunks is not the remote's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from stoa.errors import ConfigError, ReplicaLost
from stoa.fleet.remote.chunks import DONE, Chunk, read_chunk, refusal, shown
from stoa.fleet.remote.settings import RemoteConfig, key_fault
from stoa.fleet.remote.sse import BadStream, EventParser

_ERROR_BYTES = 1 << 16  # of an error's body, read at most
_BITE_BYTES = 1 << 12
_LOAD_S = 120.0  # for what is not generation


class Calls:
    """HTTP to one remote. Follows no redirect, and reads neither proxies nor keys from the environment."""

    def __init__(
        self, config: RemoteConfig, key: str = "", transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`key`: appears in no error. Raises ConfigError, without showing it, if no header can carry it."""
        if (fault := key_fault(key)) is not None:
            raise ConfigError(f"remote {config.name!r}: its key {fault}", param="api_key_env")
        self._config, self._key = config, key
        headers = {"Accept-Encoding": "identity", "User-Agent": "stoa"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        places = config.max_in_flight + 8
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=config.connect_s, pool=config.connect_s),
            limits=httpx.Limits(max_connections=places, max_keepalive_connections=places),
            follow_redirects=False,
            trust_env=False,
            proxy=config.proxy or None,
            transport=transport,
        )

    async def close(self) -> None:
        await self._http.aclose()

    def _url(self, path: str) -> str:
        return self._config.url.rstrip("/") + path

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """Chunks until [DONE] or the end of the stream. An async generator: closing it closes the connection, which
        tells the remote to stop. Raises ReplicaLost and its kinds."""
        loop, config = asyncio.get_running_loop(), self._config
        began = loop.time()
        end, deadline = began + config.total_s, began + config.first_token_s
        response = await self._open(path, body, min(end, deadline))
        try:
            parser, parts = EventParser(), _bites(response.aiter_raw())
            data: bytes | None = b""
            while data is not None:
                data = await self._part(parts, min(end, deadline))
                for event in parser.finish() if data is None else parser.feed(data):
                    if event.data.strip() == DONE:
                        return
                    chunk = read_chunk(event, self._key)
                    handed = loop.time()
                    yield chunk
                    deadline += loop.time() - handed
                    if _is_progress(chunk):
                        deadline = loop.time() + config.progress_s
        except BadStream as error:
            raise ReplicaLost(f"its answer is no stream of events: {error}") from None
        finally:
            await response.aclose()

    async def _open(self, path: str, body: dict[str, Any], deadline: float) -> httpx.Response:
        content = msgspec.json.encode(body)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._http.build_request("POST", self._url(path), content=content, headers=headers)
        response = await self._send(request, deadline)
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("text/event-stream"):
            return response
        try:
            found = await self._body(response, deadline)
        finally:
            await response.aclose()
        if response.status_code == 200:
            raise ReplicaLost(f"it answers with {self.shown(kind or 'no type')} instead of text/event-stream")
        raise refusal(response.status_code, response.headers, found, self._key)

    async def ask(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of a short answer with status 200. Raises ReplicaLost and its kinds."""
        deadline = asyncio.get_running_loop().time() + (_LOAD_S if body else self._config.first_token_s)
        request = self._http.build_request(
            method,
            self._url(path),
            content=None if body is None else msgspec.json.encode(body),
            headers={} if body is None else {"Content-Type": "application/json"},
        )
        response = await self._send(request, deadline)
        try:
            found = await self._body(response, deadline, most=4 << 20)
        finally:
            await response.aclose()
        if response.status_code != 200:
            raise refusal(response.status_code, response.headers, found, self._key)
        return found

    def shown(self, words: str) -> str:
        """The remote's words, fit for a message of ours."""
        return shown(words, self._key)

    async def _send(self, request: httpx.Request, deadline: float) -> httpx.Response:
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._http.send(request, stream=True)
        except TimeoutError:
            raise ReplicaLost("it has not begun to answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._broken(error) from None
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            await response.aclose()
            raise ReplicaLost("it encodes its answer, which was to come as it is")
        return response

    async def _part(self, parts: AsyncIterator[bytes], deadline: float) -> bytes | None:
        """The next bytes; None: the stream has ended."""
        try:
            async with asyncio.timeout_at(deadline):
                found = await anext(parts, None)
        except TimeoutError:
            found = b""
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken(error) from None
        if found is not None and asyncio.get_running_loop().time() >= deadline:
            raise ReplicaLost("its answer makes no progress")
        return found

    async def _body(self, response: httpx.Response, deadline: float, most: int = _ERROR_BYTES) -> bytes:
        found, parts = bytearray(), _bites(response.aiter_raw())
        while len(found) < most and (part := await self._part(parts, deadline)) is not None:
            found += part
        return bytes(found[:most])

    def _broken(self, error: Exception) -> ReplicaLost:
        return ReplicaLost(self.shown(f"the connection failed: {type(error).__name__}: {error}".rstrip(": ")))


async def _bites(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, at most `_BITE_BYTES` in one turn of the event loop, however much has come."""
    async for part in parts:
        for start in range(0, len(part), _BITE_BYTES):
            yield part[start : start + _BITE_BYTES]
            await asyncio.sleep(0)


def _is_progress(chunk: Chunk) -> bool:
    for c in chunk.choices:
        d = c.delta
        said = d and (d.content or d.refusal or d.reasoning_content or d.reasoning or d.tool_calls)
        if c.text or c.token_ids or c.finish_reason or said:
            return True
    return False
