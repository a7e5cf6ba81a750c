"""One request at a remote: sent, read, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from stoa.economics.api_prices import ApiPrice, Parts, Purchase, priced
from stoa.engine.request import FinishReason, GenerationRequest, TokenEvent
from stoa.engine.tokenizer import Tokenizer
from stoa.engine.usage import RequestUsage
from stoa.errors import ReplicaLost
from stoa.fleet.remote.calls import Calls
from stoa.fleet.remote.chunks import Chunk
from stoa.fleet.remote.mapping import to_body
from stoa.fleet.remote.reader import AnswerReader
from stoa.fleet.remote.settings import RemoteConfig

LINGER_S = 2.0  # for the usage, once the answer is complete
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}
Emit = Callable[[list[TokenEvent]], None]


class Errand:
    """`run` it once, or again as long as nothing was `shown`. Then ask what it took."""

    def __init__(
        self,
        config: RemoteConfig,
        request: GenerationRequest,
        tokenizer: Tokenizer | None,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: seconds, never going backwards."""
        self._config, self._request, self._emit, self._clock = config, request, emit, clock
        self._tokenizer = tokenizer if config.api == "completions" else None
        self._readers: list[AnswerReader] = []
        self._began = clock()
        self._first: float | None = None
        self.outcome: FinishReason = "cancelled"

    @property
    def shown(self) -> bool:
        return any(r.shown for r in self._readers)

    @property
    def resumable(self) -> bool:
        """Are the tokens known of all that was handed on?"""
        return all(r.resumable for r in self._readers)

    @property
    def tokens(self) -> int:
        """All that the remote has worked on."""
        return sum(r.prompt_tokens + r.completion_tokens for r in self._readers if r.began)

    async def run(self, calls: Calls, model: str) -> None:
        """Until all choices have ended. Raises ReplicaLost and its kinds; `resumable` says whether another replica can
        go on."""
        request = self._request
        groups: list[tuple[int | None, list[int]]] = [(None, list(range(request.n)))]
        if request.so_far:
            groups = [(i, [i]) for i, had in enumerate(request.so_far) if had is not None]
        self._readers = [AnswerReader(request, indexes, self._tokenizer) for _, indexes in groups]
        work = [
            asyncio.ensure_future(
                self._read(
                    reader,
                    calls.stream(_PATHS[self._config.api], to_body(self._config, model, request, choice)),
                )
            )
            for reader, (choice, _) in zip(self._readers, groups, strict=True)
        ]
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _read(self, reader: AnswerReader, stream: AsyncIterator[Chunk]) -> None:
        async with aclosing(stream) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                self._hand_on(reader.read(chunk))
                if reader.complete:
                    break
            if reader.complete and not reader.usage_known:
                with contextlib.suppress(TimeoutError, ReplicaLost):
                    async with asyncio.timeout(LINGER_S):
                        async for chunk in chunks:
                            reader.read(chunk)
                            if reader.usage_known:
                                break
        self._hand_on(reader.finish())

    def _hand_on(self, events: list[TokenEvent]) -> None:
        if not events:
            return
        if self._first is None:
            self._first = self._clock()
        for event in events:
            if event.finish_reason is not None and self.outcome != "error":
                self.outcome = event.finish_reason
        self._emit(events)

    def used(self, outcome: FinishReason | None = None) -> RequestUsage:
        """What clients and records count."""
        now, readers = self._clock(), [r for r in self._readers if r.began]
        own = self._tokenizer is not None
        prompt = len(self._request.prompt_token_ids) if own else sum(r.prompt_tokens for r in readers)
        first = now if self._first is None else self._first
        return RequestUsage(
            request_id=self._request.id,
            outcome=outcome or self.outcome,
            prompt_tokens=prompt if readers else 0,
            cached_tokens=min(prompt, sum(r.cached_tokens for r in readers[:1])),
            completion_tokens=sum(r.new_tokens for r in readers),
            prefill_ns=max(0, round((first - self._began) * 1e9)),
            decode_ns=max(0, round((now - first) * 1e9)),
        )

    def purchase(self, model: str, price: ApiPrice, at_s: int) -> Purchase | None:
        """What the remote takes for it; None: nothing came. Tokens that it has not counted are counted here."""
        readers = [r for r in self._readers if r.began]
        if not readers:
            return None
        bought = [(r.prompt_tokens, r.cached_tokens, r.completion_tokens) for r in readers]
        parts = Parts(*map(sum, zip(*(priced(price, *b) for b in bought), strict=True)))
        prompt, cached, completion = (sum(column) for column in zip(*bought, strict=True))
        estimated = not all(r.usage_known for r in readers)
        return Purchase(self._config.name, model, prompt, cached, completion, parts, at_s, estimated)
