"""One service on fakes, and the official client in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from stoa.engine.tokenizer import Tokenizer
from stoa.server import Service, create_app
from tests.server.fakes import (
    PLAIN,
    QWEN,
    FakeAdapters,
    FakeAuthority,
    FakeMetering,
    FakeRegistry,
    FakeReplica,
    make_tokenizer,
)

MakeService = Callable[..., Service]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("qwen"), QWEN)


@pytest.fixture
def replica(tokenizer: Tokenizer) -> FakeReplica:
    return FakeReplica(tokenizer)


@pytest.fixture
def registry() -> FakeRegistry:
    found = FakeRegistry()
    found.add("poet", Path("/poet"))
    return found


@pytest.fixture
def service(replica: FakeReplica, registry: FakeRegistry) -> Service:
    return make_service(replica, registry)


def make_service(replica: FakeReplica, registry: Any = None, **more: Any) -> Service:
    return Service(
        model_id="org/base",
        replica=replica,
        tokenizer=replica.tokenizer,
        adapters=FakeAdapters(FakeRegistry() if registry is None else registry),
        vocab_size=300,
        created=1_700_000_000,
        **{"authority": FakeAuthority(), "metering": FakeMetering(), **more},
    )


def http_client(service: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://stoa")


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(service) as client:
        yield client


def official(service: Service, api_key: str = "none") -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key=api_key, base_url="http://stoa/v1", http_client=http_client(service), max_retries=0
    )


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with official(service) as found:
        yield found
