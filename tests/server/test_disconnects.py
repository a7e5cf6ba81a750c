"""Clients that leave: what they asked for is cancelled, streamed or not. One test on a real port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from openai import AsyncOpenAI

from stoa.server import Service, create_app
from tests.server.fakes import FakeReplica

BODY = {"model": "org/base", "messages": [{"role": "user", "content": "hi"}]}


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [],
        "server": ("stoa", 80),
        "scheme": "http",
    }


async def leave(service: Service, path: str, body: dict[str, Any], after: int) -> list[dict[str, Any]]:
    """Posts `body` and leaves once `after` messages have come (0: while waiting). Returns what came."""
    sent: list[dict[str, Any]] = []
    enough = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode()}
        if after:
            await enough.wait()
        else:
            await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) >= after:
            enough.set()

    await asyncio.wait_for(create_app(service)(scope(path), receive, send), 5)
    return sent


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", BODY),
        ("/v1/chat/completions", BODY | {"stream": True}),
        ("/v1/completions", {"model": "org/base", "prompt": ["a", "b"]}),
        ("/v1/completions", {"model": "org/base", "prompt": ["a", "b"], "stream": True}),
        ("/v1/embeddings", {"model": "org/base", "input": ["a", "b"]}),
    ],
)
async def test_leaving_while_waiting(
    service: Service, replica: FakeReplica, path: str, body: dict[str, Any]
) -> None:
    """Before the first token: nothing is sent and everything is closed."""
    replica.hang_after = 0
    assert await leave(service, path, body, after=0) == []
    assert sorted(replica.closed) == sorted(r.id for r in replica.requests)
    assert replica.closed


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
async def test_leaving_in_mid_stream(service: Service, replica: FakeReplica, prompts: list[str]) -> None:
    """After the first chunk, while the engine is busy with the next."""
    replica.hang_after = 1
    body = {"model": "org/base", "prompt": prompts, "stream": True}
    sent = await leave(service, "/v1/completions", body, after=2)
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sorted(replica.closed) == sorted(r.id for r in replica.requests)
    assert len(replica.closed) == len(prompts)


async def test_leaving_at_the_headers(service: Service, replica: FakeReplica) -> None:
    """A client that leaves as the answer begins is noticed too, though no chunk was asked for."""
    app, sent = create_app(service), []
    body = json.dumps(BODY | {"stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]
    never = asyncio.Event()
    begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        begun.set()
        await never.wait()  # the socket takes no more

    await asyncio.wait_for(app(scope("/v1/chat/completions"), receive, send), 5)
    assert len(sent) == 1
    assert replica.closed == [replica.requests[0].id]


@pytest.fixture
async def port(service: Service) -> AsyncIterator[int]:
    """The service behind uvicorn on a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(service), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def test_a_real_port(port: int, replica: FakeReplica) -> None:
    """Chunks arrive one by one; closing the stream in the middle cancels; the next request works."""
    replica.hang_after = 2
    async with AsyncOpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client:
        messages: Any = BODY["messages"]
        stream = await client.chat.completions.create(model="org/base", messages=messages, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text == "Hello ":
                break
        await stream.close()
        for _ in range(100):
            if replica.closed:
                break
            await asyncio.sleep(0.02)
        assert replica.closed == [replica.requests[0].id]
        replica.hang_after = None
        answer = await client.chat.completions.create(model="org/base", messages=messages)
        assert answer.choices[0].message.content == "Hello world"
