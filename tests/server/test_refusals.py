"""Bad input, one row for each way; every answer has OpenAI's error shape and names the field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from stoa.server import Service
from tests.server.conftest import http_client, make_service
from tests.server.fakes import EVERYBODY, FakeAuthority, FakeReplica

CHAT = {"model": "org/base", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "org/base", "prompt": "hi"}
EMBED = {"model": "org/base", "input": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}

SAMPLING: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.1}, "temperature", "between 0 and 2"),
    ({"temperature": "hot"}, "temperature", "expected number, but got string"),
    ({"top_p": 0}, "top_p", "above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p", "above 0 and at most 1"),
    ({"top_k": -2}, "top_k", "or above"),
    ({"top_k": 1.5}, "top_k", "expected integer"),
    ({"min_p": 2}, "min_p", "between 0 and 1"),
    ({"seed": 1 << 63}, "seed", "64-bit"),
    ({"seed": 1 << 70}, "seed", "64-bit"),
    ({"stop": 3}, "stop", "expected string or array"),
    ({"stop": ""}, "stop", "1 to 1024 characters"),
    ({"stop": ["x"] * 17}, "stop", "up to 16"),
    ({"stop_token_ids": [300]}, "stop_token_ids", "0 to 299"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "0 to 299"),
    ({"max_tokens": 0}, "max_tokens", "1 or above"),
    ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "at most max_tokens"),
    ({"min_tokens": -1}, "min_tokens", "0 or above"),
    ({"n": 0}, "n", "between 1 and 128"),
    ({"n": 129}, "n", "between 1 and 128"),
    ({"n": True}, "n", "expected integer, but got boolean"),
    ({"stream": "yes"}, "stream", "expected boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only accepted with 'stream'"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unknown parameter"),
    ({"presence_penalty": 2.5}, "presence_penalty", "between -2 and 2"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "between -2 and 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "0 to 299"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "between -100 and 100"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "expected integer"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "up to 16"),
    ({"service_tier": "gold"}, "service_tier", "auto, default, flex"),
    ({"bogus": 1}, "bogus", "Unrecognized request argument supplied: bogus"),
    ({"model": 7}, "model", "expected string"),
]
ONLY_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "one message or more"),
    ({"messages": "hi"}, "messages", "expected array"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "Missing"),
    ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "system, developer"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "image_url",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "Missing",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "JSON"),  # type: ignore[list-item]
    ({"max_completion_tokens": -1}, "max_completion_tokens", "1 or above"),
    ({"logprobs": 3}, "logprobs", "expected boolean"),
    ({"top_logprobs": 2}, "top_logprobs", "only accepted with 'logprobs'"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
    ({"modalities": ["audio"]}, "modalities", "text"),
    ({"tools": [TOOL]}, "tools", "knows no tools"),
    ({"tools": [{"type": "web", "function": {"name": "f"}}]}, "tools[0].type", "accepted: function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "1 to 64"),
    ({"tool_choice": "required"}, "tool_choice", "only accepted with 'tools'"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "none, auto, required"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "no function 'g'",
    ),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "not accepted"),
]
ONLY_TEXT: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": []}, "prompt", "is empty"),
    ({"prompt": [1, "a"]}, "prompt", "token ids from 0 to 299"),
    ({"prompt": [1, True]}, "prompt", "token ids"),
    ({"prompt": ["a", 1]}, "prompt", "list of texts"),
    ({"prompt": ["a", ""]}, "prompt[1]", "at least one token"),
    ({"prompt": [[1], [300]]}, "prompt[1]", "0 to 299"),
    ({"prompt": [{}]}, "prompt", "list of texts"),
    ({"prompt": None}, "prompt", "expected string or array"),
    ({"prompt": ["a"] * 129}, "prompt", "up to 128"),
    ({"prompt": ["a"] * 20, "n": 20}, "n", "up to 128"),
    ({"logprobs": 21}, "logprobs", "between 0 and 20"),
    ({"logprobs": 1, "echo": True}, "echo", "together"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"best_of": 2}, "best_of", "the value of 'n'"),
]
ONLY_EMBED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "input", "at least one token"),
    ({"input": {}}, "input", "expected string or array"),
    ({"dimensions": 0}, "dimensions", "1 or above"),
    ({"encoding_format": "hex"}, "encoding_format", "float, base64"),
    ({"input": ["a"] * 2049}, "input", "up to 2048"),
    ({"bogus": 1}, "bogus", "Unrecognized"),
]
CASES = [
    *(("/v1/chat/completions", CHAT, *row) for row in SAMPLING + ONLY_CHAT),
    *(("/v1/completions", TEXT, *row) for row in SAMPLING + ONLY_TEXT),
    *(("/v1/embeddings", EMBED, *row) for row in ONLY_EMBED),
]


@pytest.mark.parametrize(("path", "base", "change", "param", "words"), CASES)
async def test_bad_fields(
    http: httpx.AsyncClient,
    replica: FakeReplica,
    path: str,
    base: dict[str, Any],
    change: dict[str, Any],
    param: str,
    words: str,
) -> None:
    """400, the field, and what would be accepted; nothing reaches the engine."""
    body = json.dumps(base | change)
    response = await http.post(path, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert replica.requests == []


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_missing_fields(http: httpx.AsyncClient, missing: str) -> None:
    """Named, as param too."""
    body = {k: v for k, v in CHAT.items() if k != missing}
    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]
    assert (error["param"], error["message"]) == (missing, f"Missing required parameter: '{missing}'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "expected object"),
        (b"null", "expected object"),
        (b'{"model": "\xff"}', "not valid UTF-8"),
        (b'{"model": "a", "prompt": ""} x', "not valid JSON"),
        (b'{"model": NaN}', "not valid JSON"),
        (b'{"model": "a", "prompt": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
async def test_bodies_that_are_not_json(http: httpx.AsyncClient, content: bytes, words: str) -> None:
    """400 that says what is wrong with the body."""
    response = await http.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_unknown_models(http: httpx.AsyncClient) -> None:
    """404 for an unknown name, version, and name that no adapter can have."""
    for name in ("nobody", "poet@000000000000", "../etc", "", "x" * 5000):
        response = await http.post("/v1/chat/completions", json=CHAT | {"model": name})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert len(error["message"]) < 400


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    """In the same shape, with the methods that are allowed."""
    response = await http.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")
    assert (await http.get("/v1/models/")).status_code == 404
    response = await http.get("/v1/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_large_bodies_are_not_read(replica: FakeReplica) -> None:
    """Refused by their length, or where they pass the limit, if they do not tell it."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 100
            yield b"x" * 100

    async with http_client(make_service(replica, max_body_bytes=1000)) as http:
        for content in (b"x" * 1001, endless()):
            response = await http.post("/v1/completions", content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert taken < 2000
        assert (await http.post("/v1/completions", json=TEXT)).status_code == 200


async def test_request_ids(http: httpx.AsyncClient) -> None:
    """A sane one comes back, any other is replaced; errors have one too."""
    assert (await http.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 129, "a\tb"):
        made = (await http.get("/nothing", headers={"x-request-id": bad})).headers["x-request-id"]
        assert made.startswith("req_")


async def test_one_log_line_for_a_request(http: httpx.AsyncClient) -> None:
    """With what a person looks for; probes stay quiet."""
    with capture_logs() as lines:
        await http.post("/v1/completions", json=TEXT, headers={"x-request-id": "r1"})
        await http.get("/health")
    (line,) = [entry for entry in lines if entry["log_level"] == "info"]
    expected = {"path": "/v1/completions", "status": 200, "request_id": "r1", "model": "org/base"}
    assert expected.items() <= line.items()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (2, 12)


@pytest.mark.parametrize("stream", [False, True])
async def test_faults_of_our_own(http: httpx.AsyncClient, replica: FakeReplica, stream: bool) -> None:
    """500 in the same shape, without the fault's words, which are in the log."""
    replica.refusal = RuntimeError("secret")
    with capture_logs() as lines:
        response = await http.post("/v1/completions", json=TEXT | {"stream": stream})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert any(entry["event"] == "unexpected error" for entry in lines)


async def test_keys(replica: FakeReplica) -> None:
    """With a key set, /v1/* wants it; probes and metrics stay open."""
    service: Service = make_service(replica, authority=FakeAuthority("sésame"))
    async with http_client(service) as http:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
            response = await http.get("/v1/models", headers=header)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        right = {"Authorization": "Bearer sésame".encode()}
        assert (await http.get("/v1/models", headers=right)).status_code == 200
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:8000", "origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "null"}, 403),
    ],
)
async def test_without_keys_only_this_host_is_trusted(
    replica: FakeReplica, headers: dict[str, str], status: int
) -> None:
    """Another host's web page must not administer the service through somebody's browser."""
    authority = FakeAuthority(principal=dataclasses.replace(EVERYBODY, key_id=None))
    async with http_client(make_service(replica, authority=authority)) as http:
        assert (await http.get("/v1/models", headers=headers)).status_code == status
