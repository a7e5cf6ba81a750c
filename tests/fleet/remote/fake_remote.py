"""A server that speaks OpenAI's API as vLLM does, or fails at it as told. One token is one byte of its answer.

`script` holds what the next questions get, in order; then come whole answers again.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stoa.engine.tokenizer import Tokenizer

PROMPT = [1, 2, 3, 4]
BASE = "their-base"
Behaviour = Callable[["FakeRemote", dict[str, Any], "Wire"], Awaitable[None]]


@dataclass
class Wire:
    """An HTTP/1.1 answer in chunks, so that a cut can be told from an end."""

    writer: asyncio.StreamWriter

    def head(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Transfer-Encoding: chunked"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def event(self, value: Any) -> None:
        await self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def cut(self) -> None:
        self.writer.transport.abort()


@dataclass
class FakeRemote:
    tokenizer: Tokenizer
    text: str = "Hello world"
    step: int = 3  # tokens in a chunk
    pause_s: float = 0.0  # between chunks
    knows_ids: bool = True
    says_usage: bool = True
    max_loras: int = 99
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": BASE, "max_model_len": 500}])
    script: deque[Behaviour] = field(default_factory=deque)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)  # heads of all questions
    loaded: dict[str, str] = field(default_factory=dict)
    left: int = 0  # connections that the other side closed in the middle of an answer
    url: str = ""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for path, body in self.asked if path.endswith("completions")]

    # -- answers

    async def whole(self, body: dict[str, Any], wire: Wire, cut_after: int | None = None) -> None:
        """The answer, going on behind what follows the prompt; up to `cut_after` chunks of it."""
        wire.head()
        ids = self.tokenizer.encode(self.text)
        had = len(body["prompt"]) - len(PROMPT) if "prompt" in body else 0
        most = body.get("max_tokens", 10**6)
        mine = ids[had : had + most]
        for number, start in enumerate(range(0, len(mine), self.step)):
            if number == cut_after:
                return
            part = mine[start : start + self.step]
            await asyncio.sleep(self.pause_s)
            for index in range(body.get("n", 1)):
                await wire.event({"choices": [self.choice(body, index, part)]})
        reason = "length" if len(mine) == most else "stop"
        for index in range(body.get("n", 1)):
            await wire.event({"choices": [self.choice(body, index, [], reason)]})
        if self.says_usage:
            usage = {"prompt_tokens": len(PROMPT) + had, "completion_tokens": len(mine) * body.get("n", 1)}
            await wire.event(
                {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 2}}}
            )
        await wire.send(b"data: [DONE]\n\n")
        await wire.end()

    def choice(
        self, body: dict[str, Any], index: int, ids: list[int], reason: str | None = None
    ) -> dict[str, Any]:
        text = self.tokenizer.decode(ids)
        found: dict[str, Any] = {"index": index, "finish_reason": reason}
        if "messages" in body:
            return found | {"delta": {"content": text}}
        found["text"] = text
        if self.knows_ids and body.get("return_token_ids"):
            found["token_ids"] = ids
        if body.get("logprobs") is not None:
            names = [f"token_id:{i}" for i in ids]
            tops = [{n: -0.5, "token_id:7": -0.25, "token_id:8": -3.0} for n in names]
            found["logprobs"] = {"tokens": names, "token_logprobs": [-0.5] * len(ids), "top_logprobs": tops}
        return found

    async def problem(self, wire: Wire, status: int, body: Any, **headers: str) -> None:
        wire.head(status, "application/json", **headers)
        await wire.send(body if isinstance(body, bytes) else json.dumps(body).encode())
        await wire.end()

    # -- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.headers.append(head)
                length = next(
                    (
                        int(v)
                        for k, _, v in (h.partition(":") for h in head.split("\r\n"))
                        if k.lower() == "content-length"
                    ),
                    0,
                )
                raw = await reader.readexactly(length)
                await self._answer(head.split(" ")[1], json.loads(raw) if raw else {}, Wire(writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            self.left += 1
        finally:
            writer.close()

    async def _answer(self, path: str, body: dict[str, Any], wire: Wire) -> None:
        self.asked.append((path, body))
        if path == "/v1/models":
            cards = [*self.models, *({"id": name} for name in self.loaded)]
            await self.problem(wire, 200, {"data": cards})
        elif path == "/v1/load_lora_adapter":
            await self._load(body, wire)
        elif path == "/v1/unload_lora_adapter":
            known = self.loaded.pop(body["lora_name"], None) is not None
            await self.problem(wire, 200 if known else 404, {"message": "as you say"})
        elif self.script:
            await self.script.popleft()(self, body, wire)
        elif body["model"] not in {*(m["id"] for m in self.models), *self.loaded}:
            await self.problem(wire, 404, {"error": {"message": "no such model", "code": 404}})
        else:
            await self.whole(body, wire)

    async def _load(self, body: dict[str, Any], wire: Wire) -> None:
        name = body["lora_name"]
        if name in self.loaded:
            await self.problem(wire, 400, {"error": {"message": f"{name} has already been loaded"}})
            return
        self.loaded[name] = body["lora_path"]
        await self.problem(wire, 200, b"Success")


@asynccontextmanager
async def fake_remote(tokenizer: Tokenizer, **options: Any) -> AsyncIterator[FakeRemote]:
    fake = FakeRemote(tokenizer, **options)
    server = await asyncio.start_server(fake._serve, "127.0.0.1", 0, limit=1 << 20)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        server.close()


# -- behaviours


def error(status: int, message: Any = "no", **headers: str) -> Behaviour:
    async def behave(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
        await fake.problem(wire, status, {"error": {"message": message}}, **headers)

    return behave


def cut(chunks: int) -> Behaviour:
    """The connection breaks after so many chunks."""

    async def behave(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
        await fake.whole(body, wire, cut_after=chunks)
        await asyncio.sleep(0.02)  # so that they arrive
        wire.cut()

    return behave


def hang(chunks: int | None = None, noise: bytes = b"") -> Behaviour:
    """After so many chunks (None: before the head) nothing more comes but `noise`."""

    async def behave(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
        if chunks is not None:
            await fake.whole(body, wire, cut_after=chunks)
        while True:
            await asyncio.sleep(0.01)
            if noise:
                await wire.send(noise)

    return behave


def raw(*parts: bytes, kind: str = "text/event-stream") -> Behaviour:
    """These bytes as a stream."""

    async def behave(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
        wire.head(kind=kind)
        for part in parts:
            await wire.send(part)
        await wire.end()

    return behave


async def refuse(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
    """The connection is closed without a word."""
    wire.cut()
