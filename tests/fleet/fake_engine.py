"""An engine without a model: each step yields the next token of every request, slowly enough to be killed.

What a request wants is written in its prompt: [tokens to produce, milliseconds before the first one].
"""

from __future__ import annotations

import os
import threading
import time

from stoa.engine.accounting import Accounts, Book
from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.errors import InvalidRequest, UnsupportedModel

STEP_S = 0.005
POISON, STALL = -2, -3


class FakeEngine:
    kernels_name = "fake"
    notice = ""
    max_model_len = 64

    def __init__(self, config: EngineConfig) -> None:
        if config.model == "unsupported":
            raise UnsupportedModel("architecture Fancy is not supported", param="model")
        if config.model == "crash":
            raise RuntimeError("no such device")
        self.idle = True
        self.wakeup = threading.Event()
        self.accounts = Accounts(pool_bytes=1 << 20)
        self._books: dict[str, Book] = {}
        self._held: list[str] = []
        self._live: dict[str, tuple[GenerationRequest, float, int]] = {}

    @property
    def has_requests(self) -> bool:
        return bool(self._live)

    def add_request(self, request: GenerationRequest) -> None:
        if request.prompt_token_ids[0] == POISON:
            os._exit(9)
        if request.prompt_token_ids[0] == STALL:
            time.sleep(3600)
        if request.prompt_token_ids[0] < 0:
            raise InvalidRequest("token id -1 is outside the vocabulary", param="prompt")
        starts = time.monotonic() + request.prompt_token_ids[1] / 1000
        begun = len(request.so_far[0] or ()) if request.so_far else 0
        self._live[request.id] = (request, starts, begun)
        self._books[request.id] = self.accounts.open(request)
        self.idle = False

    def cancel(self, request_id: str) -> None:
        if self._live.pop(request_id, None):
            self.accounts.close(self._books.pop(request_id))

    def warm(self, ref: AdapterRef) -> None:
        self._held.append(ref.id)

    def forget(self, adapter_id: str) -> None:
        pass

    def step(self) -> list[TokenEvent]:
        time.sleep(STEP_S)
        events = []
        for name, (request, starts, done) in list(self._live.items()):
            if time.monotonic() < starts:
                continue
            last = done + 1 >= request.prompt_token_ids[0]
            events.append(
                TokenEvent(request_id=name, token_ids=[done], finish_reason="stop" if last else None)
            )
            self._live[name] = (request, starts, done + 1)
            book = self._books[name]
            self.accounts.step([book], [1.0], 1_000_000)
            book.completion_tokens += 1
            if last:
                del self._live[name]
                book.outcome = "stop"
                self.accounts.close(self._books.pop(name))
        return events

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._live), held_adapters=self._held)

    def close(self) -> None:
        pass
