"""What one request has used at all replicas that had it, told to the books as one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stoa.engine.request import GenerationRequest
from stoa.engine.usage import RequestUsage, summed
from stoa.fleet.books import Books


class Tally:
    """Told once, when nothing more begins and each leg that has begun is used or lost."""

    def __init__(self, request: GenerationRequest, books: Books) -> None:
        self._request, self._books = request, books
        self._legs = 0
        self._running = 0
        self._usages: list[RequestUsage] = []
        self._cost_nanos = 0
        self._lost_tokens = 0
        self._tokens = 0
        self._over = False

    def begun(self) -> None:
        if not self._legs:
            self._books.begun(self._request.id)
        self._legs += 1
        self._running += 1

    def used(self, usage: RequestUsage, cost_nanos: int) -> None:
        self._usages.append(usage)
        self._cost_nanos += cost_nanos
        self._end_leg()

    def lost(self, tokens: int) -> None:
        """A leg whose replica has not told; it had handed on so many tokens."""
        self._lost_tokens += tokens
        self._end_leg()

    def close(self, tokens: int) -> None:
        """Nothing more begins; the client has had so many tokens."""
        if not self._over:
            self._over, self._tokens = True, tokens
            self._settle()

    def _end_leg(self) -> None:
        self._running -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._over or self._running or not self._legs:
            return
        if self._legs == 1 and self._usages:
            usage = self._usages[0]
        else:
            usage = _together(self._request, self._usages, self._tokens)
        self._books.used(usage, self._cost_nanos, min(self._lost_tokens, usage.completion_tokens))


def _together(request: GenerationRequest, usages: Sequence[RequestUsage], tokens: int) -> RequestUsage:
    """The prompt and each token count once; what they took counts as often as it was done."""
    return msgspec.structs.replace(
        summed(request.id, usages[-1].outcome if usages else "error", usages),
        prompt_tokens=len(request.prompt_token_ids) if usages or tokens else 0,
        cached_tokens=usages[0].cached_tokens if usages else 0,
        completion_tokens=tokens,
    )
