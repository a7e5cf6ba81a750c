"""Small worlds for tests: profiles, requests, policies that follow a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from stoa.fleet.policies.facts import Decision, Launch, Offer, Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Requests

STEP_S = 0.05


def profile(**changes: float) -> Profile:
    """A step takes 50 ms, whatever is in it."""
    facts: dict[str, float] = {"fixed_s": STEP_S, "prompt_row_s": 0.0, "decode_row_s": 0.0}
    return Profile(name="test", **(facts | changes))  # type: ignore[arg-type]


def requests(*rows: tuple[float, int, int]) -> Requests:
    """(arrival, prompt tokens, output tokens) each."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return Requests(
        np.array(columns[0], np.float64), np.array(columns[1], np.int32), np.array(columns[2], np.int32)
    )


def poisson(rate: float, count: int, seed: int, prompt: int = 1, output: int = 20) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests(
        np.cumsum(rng.exponential(1 / rate, count)),
        np.full(count, prompt, np.int32),
        np.full(count, output, np.int32),
    )


@dataclass
class Script:
    """Does at each time what the script says, and remembers what it has seen."""

    acts: Mapping[float, Callable[[Snapshot], Decision]]
    seen: list[Snapshot] = field(default_factory=list)

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        self.seen.append(seen)
        act = self.acts.get(seen.now_s)
        return (act(seen) if act else Decision()), None


def launch(count: int = 1, offer: int = 0) -> Callable[[Snapshot], Decision]:
    return lambda seen: Decision([Launch(seen.offers[offer].offer, count)])


def drain(*places: int) -> Callable[[Snapshot], Decision]:
    return lambda seen: Decision(drain=[seen.replicas[i].id for i in places])


@dataclass(frozen=True)
class Constant:
    """Keeps `count` replicas at the first offer that has not refused in the last minute, or at `offer`."""

    count: int
    offer: Offer | None = None

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        there = [r for r in seen.replicas if r.state != "draining"]
        open_ = [o.offer for o in seen.offers if seen.now_s - o.refused_s > 60]
        offer = self.offer or (open_[0] if open_ else None)
        if offer is None or len(there) >= self.count:
            return Decision(), None
        return Decision([Launch(offer, self.count - len(there))]), None
