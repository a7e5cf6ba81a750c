"""An engine that computes nothing: each request gets its tokens together, after a set time for each of them."""

from __future__ import annotations

import heapq
import os
import threading
import time

from stoa.engine.accounting import Accounts, Book
from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats

TOKEN_MS = "STOA_FAKE_ENGINE_TOKEN_MS"
CORES = "STOA_FAKE_ENGINE_CORES"  # comma-separated
_REST_S = 0.0005  # how exactly the delay is kept


class FakeEngine:
    """Implements `fleet.worker.EngineLike`. Time of a token and cores come from the environment."""

    kernels_name = "fake"
    notice = "this engine is a fake"
    max_model_len = 4096

    def __init__(self, config: EngineConfig) -> None:
        if cores := os.environ.get(CORES):
            os.sched_setaffinity(0, map(int, cores.split(",")))
        self.idle = False  # it never waits to be woken, but sleeps
        self.wakeup = threading.Event()
        self.accounts = Accounts(pool_bytes=1 << 30)
        self._token_s = float(os.environ.get(TOKEN_MS, "0")) / 1000
        self._due: list[tuple[float, str]] = []
        self._live: dict[str, Book] = {}

    @property
    def has_requests(self) -> bool:
        return bool(self._live)

    def add_request(self, request: GenerationRequest) -> None:
        self._live[request.id] = self.accounts.open(request)
        due_s = time.perf_counter() + self._token_s * request.params.max_tokens
        heapq.heappush(self._due, (due_s, request.id))

    def cancel(self, request_id: str) -> None:
        book = self._live.pop(request_id, None)
        if book is not None:
            self.accounts.close(book)

    def warm(self, ref: AdapterRef) -> None: ...

    def forget(self, adapter_id: str) -> None: ...

    def step(self) -> list[TokenEvent]:
        now = time.perf_counter()
        done: list[Book] = []
        while self._due and self._due[0][0] <= now:
            book = self._live.pop(heapq.heappop(self._due)[1], None)
            if book is not None:
                done.append(book)
        if not done:
            time.sleep(max(0.0, min(_REST_S, self._due[0][0] - now)) if self._due else _REST_S)
            return []
        took_ns = int((time.perf_counter() - now) * 1e9) + 1
        self.accounts.step(done, [1.0] * len(done), took_ns)
        return [self._end(book) for book in done]

    def _end(self, book: Book) -> TokenEvent:
        count = book.request.params.max_tokens
        book.completion_tokens, book.outcome = count, "length"
        book.first_step_ns = book.first_token_ns = self.accounts.clock_ns()
        self.accounts.close(book)
        prompt = len(book.request.prompt_token_ids)
        return TokenEvent(
            request_id=book.request.id,
            token_ids=[5] * count,
            text="x" * count,
            finish_reason="length",
            prompt_tokens=prompt,
            completion_tokens=count,
        )

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._live))

    def close(self) -> None: ...
