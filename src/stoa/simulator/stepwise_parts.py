"""What the slow twin keeps of requests and replicas, and the numbers it draws."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from stoa.simulator.core import HIST_BINS, HIST_LEAST_S, HIST_MOST_S

_SCALE = HIST_BINS / math.log(HIST_MOST_S / HIST_LEAST_S)
_MASK = (1 << 64) - 1
LATE_MOST_S, LATE_SHARE = 120.0, 4  # who waits longer has one of so many places, as in engine/deadlines.py
RESUMED = 1 << 62  # goes off the order of those that have had tokens elsewhere: they come first


@dataclass(eq=False, slots=True)
class Request:
    number: int
    arrival_s: float
    prompt: int
    output: int
    project: int
    adapter: int
    emitted: int = 0
    done: int = 0  # rows computed
    rows: int = 0  # in the step under way
    decodes: bool = False  # its prompt, and tokens from elsewhere, are computed
    first_s: float = math.nan
    token_s: float = math.nan  # of its last token
    order: int = 0
    slot: int = -1
    weighs: bool = False  # its prompt counts in its replica's load
    left: Replica | None = None  # on its way from there

    @property
    def tokens(self) -> int:
        return self.prompt + self.emitted


@dataclass(eq=False, slots=True)
class Replica:
    slot: int
    emptied_s: float
    waiting: list[Request] = field(default_factory=list)  # by order
    late: list[Request] = field(
        default_factory=list
    )  # without a token, and too late for one in time; by order
    passed: int = 0  # admitted since one of these
    running: list[Request] = field(default_factory=list)
    step_ends_s: float = math.inf  # inf: idle
    in_step: bool = False
    moving: int = 0


def order_of(request: Request) -> int:
    return request.order


class Draws(random.Random):
    """The numbers that the fast twin draws: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
    generators, scrambled", 2016)."""

    def __init__(self, seed: int) -> None:
        self._state = ((seed + 1) * 0x9E3779B97F4A7C15 | 1) & _MASK

    def random(self) -> float:
        x = self._state
        x ^= x >> 12
        x = (x ^ x << 25) & _MASK
        x ^= x >> 27
        self._state = x
        return ((x * 2685821657736338717 & _MASK) >> 11) * 2.0**-53


def hist_bin(seconds: float) -> int:
    if seconds <= HIST_LEAST_S:
        return 0
    return min(HIST_BINS - 1, int(math.log(seconds / HIST_LEAST_S) * _SCALE))
