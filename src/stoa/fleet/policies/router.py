"""Which replica gets a request: one that holds its adapter and its prefix, as far as load allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class ReplicaLoad:
    """Kept up to date by who sends requests; `route` only reads it."""

    id: str
    slots: int = 64  # sequences that run at once
    running: int = 0  # requests sent to it that have not ended
    prompt_tokens: int = 0  # of these, of requests without a first token
    taking: bool = True  # ready, and not about to end


@dataclass(frozen=True, slots=True)
class Ask:
    """What the router wants to know of a request."""

    project: str
    adapter: str | None = None
    prompt_tokens: int = 0
    prefix: Sequence[bytes] = ()  # hash chain of its leading blocks, salted by project and adapter
