"""A tokenizer of bytes, a fake remote, and a replica in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from stoa.economics.accounts import Account
from stoa.economics.api_prices import Purchase
from stoa.engine.request import GenerationRequest, SamplingParams, TokenEvent
from stoa.engine.tokenizer import Tokenizer
from stoa.engine.usage import RequestUsage
from stoa.fleet.remote import Calls, RemoteConfig, RemoteReplica
from tests.fleet.remote.fake_remote import BASE, PROMPT, FakeRemote, fake_remote
from tests.server.fakes import PLAIN, make_tokenizer


@dataclass
class Ear:
    """Hears what a receiver hears."""

    heard: list[TokenEvent] = field(default_factory=list)
    usage: RequestUsage | None = None
    nanos: int = 0
    losses: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    some: asyncio.Event = field(default_factory=asyncio.Event)

    def events(self, events: list[TokenEvent]) -> None:
        assert not self.over.is_set()
        self.heard += events
        self.some.set()

    def used(self, usage: RequestUsage, cost_nanos: int) -> None:
        assert not self.over.is_set()
        self.usage, self.nanos = usage, cost_nanos
        self.over.set()

    def lost(self) -> None:
        assert not self.over.is_set()
        self.losses += 1
        self.over.set()

    def text(self, index: int = 0) -> str:
        return "".join(e.text for e in self.heard if e.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        return [t for e in self.heard if e.index == index for t in e.token_ids]

    @property
    def ends(self) -> list[TokenEvent]:
        return [e for e in self.heard if e.finish_reason is not None]


@dataclass
class Bench:
    """`replica` before `remote`. `ask` waits until a request is over."""

    remote: FakeRemote
    replica: RemoteReplica
    bought: list[tuple[str, Purchase]]

    async def ask(self, request: GenerationRequest) -> Ear:
        ear = Ear()
        self.replica.open(request, ear)
        async with asyncio.timeout(10):
            await ear.over.wait()
        return ear


MakeBench = Callable[..., Any]


def request(name: str = "r", **more: Any) -> GenerationRequest:
    params = {"max_tokens": 100, **more.pop("params", {})}
    account = str(Account("proj_a", "key_1", more.pop("model", "our-base")))
    return GenerationRequest(
        id=name,
        prompt_token_ids=PROMPT,
        params=SamplingParams(**params),
        project="proj_a",
        account=account,
        **more,
    )


def config(url: str, **more: Any) -> RemoteConfig:
    settings = {"models": {"our-base": BASE}, "probe_s": 0.02, "max_model_len": 500, **more}
    return RemoteConfig(name="there", url=url, **settings)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("bytes"), PLAIN)


@pytest.fixture
async def make(tokenizer: Tokenizer) -> AsyncIterator[MakeBench]:
    async with AsyncExitStack() as stack:

        async def make_bench(
            fake: dict[str, Any] | None = None, replica: dict[str, Any] | None = None, **settings: Any
        ) -> Bench:
            remote = await stack.enter_async_context(fake_remote(tokenizer, **(fake or {})))
            made = config(**{"url": remote.url, **settings})
            bought: list[tuple[str, Purchase]] = []
            found = RemoteReplica(
                made,
                "our-base",
                calls=Calls(made, "sesame"),
                tokenizer=tokenizer,
                buy=lambda account, purchase: bought.append((account, purchase)),
                **(replica or {}),
            )
            stack.push_async_callback(found.stop)
            await found.start()
            return Bench(remote, found, bought)

        yield make_bench


@pytest.fixture
async def bench(make: MakeBench) -> Bench:
    found: Bench = await make()
    return found
