"""A profile with where it is from, and how far it is from what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.profile import Profile
from stoa.planner.problem import Source


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica is set to, which no table of times says. `kv_tokens`: see `roofline.kv_tokens_of`."""

    max_num_seqs: int = 256
    max_batch_tokens: int = 2048
    kv_tokens: int = 1 << 60


@dataclass(frozen=True, slots=True)
class Fitted:
    """`error`: mean of |foretold / measured - 1| (`measured`: median) over the measurements; NaN: unknown."""

    profile: Profile
    error: float
    source: Source
    why: str  # for people

    @property
    def said(self) -> str:
        return self.why if math.isnan(self.error) else f"{self.why}; {self.error:.0%} off on average"
