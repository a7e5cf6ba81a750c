"""Who is served next: virtual token counters per project (VTC; Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024), counted in what service costs.

    served[p]   what p has got, divided by its weight; only differences mean anything
    next        the project with the least, among those that wait
    arrival     a project that had nothing waiting is lifted to the least of those that do: idle time earns no credit

Two projects that both wait never differ by more than what one admission and one step can add (the paper's bound).
A request's prompt is charged when it is admitted, as expected, and corrected as its steps are measured.

Counters say who comes next; they do not keep a step short. A project that has had clearly more than its share of the
last seconds is `over` while a light one is around, which asks for less than it could have: what the first may add to a
step is bounded, so that the next request of the second finds the engine soon. Projects that all have more waiting than
can be served share long steps, which are the efficient ones.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

MEMORY_WEIGHT = (
    0.25  # holding the whole pool costs as much as a quarter of the machine's time, as the bill has it
)
_MEMORY_S = 10.0  # how long the recent past is
_CLEARLY = 1.1  # times the fair share
_LIGHT_S = 2.0  # a project is light that had nothing waiting so lately
_MAX_IDLE = 10_000  # projects remembered after they left


class Queued(Protocol):
    """What the order of sequences depends on."""

    @property
    def project(self) -> str: ...
    @property
    def priority(self) -> tuple[int, int, int]: ...


Q = TypeVar("Q", bound=Queued)


@dataclass
class _Project:
    weight: float = 1.0
    served: float = 0.0
    recent: float = 0.0  # unweighted, decayed
    as_of_s: float = 0.0  # when `recent` was brought up to date
    seen_s: float = -math.inf  # last time it had something live
    clear_s: float = -math.inf  # last time it had nothing waiting, if it has now
    live: int = 0


@dataclass
class FairShares:
    """Counters of all projects. `enabled` False: everybody is equal, first come first served."""

    enabled: bool = True
    clock: Callable[[], float] = time.monotonic
    _projects: dict[str, _Project] = field(default_factory=dict)
    _waiting: Counter[str] = field(default_factory=Counter)
    _floor: float = 0.0  # the counter of the last project that stopped waiting

    def served(self, project: str) -> float:
        return self._projects[project].served

    # -- coming and going

    def arrive(self, project: str, weight: float) -> None:
        """A sequence of the project is new."""
        mine = self._projects.setdefault(project, _Project())
        mine.weight = weight
        mine.live += 1
        if len(self._projects) > _MAX_IDLE:
            self._forget()

    def leave(self, project: str) -> None:
        """A sequence of the project has ended."""
        mine = self._projects[project]
        mine.live -= 1
        mine.seen_s = self.clock()

    def wait(self, project: str, *, new: bool = True) -> None:
        """One more sequence waits for admission; not `new`: it ran before and was preempted."""
        mine = self._projects[project]
        if not self._waiting[project]:
            mine.clear_s = self.clock()
            others = [self._projects[p].served for p, n in self._waiting.items() if n]
            if new:
                mine.served = max(mine.served, min(others, default=self._floor))
        self._waiting[project] += 1

    def admitted(self, project: str) -> None:
        """One sequence waits no longer."""
        self._waiting[project] -= 1
        if not self._waiting[project]:
            del self._waiting[project]
            self._floor = self._projects[project].served

    def charge(self, project: str, cost: float) -> None:
        """`cost`: of service given; negative: charged before and not needed."""
        mine = self._projects.setdefault(project, _Project())
        mine.served += cost / mine.weight
        mine.recent = max(0.0, self._recent(mine) + cost)
        mine.as_of_s = self.clock()

    # -- decisions

    def order(self, seqs: Sequence[Q], cost: Callable[[Q], float]) -> Iterator[Q]:
        """`seqs`, which are in order of priority, as they should be served. Class goes first, then the project that
        would have had least with what was yielded before (`cost`), then arrival."""
        if not self.enabled:
            yield from seqs
            return
        queues: dict[tuple[int, str], list[Q]] = {}
        for seq in reversed(seqs):
            queues.setdefault((seq.priority[0], seq.project), []).append(seq)
        planned = {project: self._projects[project].served for _, project in queues}
        while len(queues) > 1:
            key = min(queues, key=lambda k: (k[0], planned[k[1]], queues[k][-1].priority))
            seq = queues[key].pop()
            if not queues[key]:
                del queues[key]
            planned[seq.project] += cost(seq) / self._projects[seq.project].weight
            yield seq
        for last in queues.values():
            yield from reversed(last)

    def over(self) -> frozenset[str]:
        """Projects that have had clearly more than their share lately, while a light one is around."""
        if not self.enabled:
            return frozenset()
        now = self.clock()
        near = {p: s for p, s in self._projects.items() if s.live or now - s.seen_s < _MEMORY_S}
        if len(near) < 2:
            return frozenset()
        light = {p for p, s in near.items() if not self._waiting[p] or now - s.clear_s < _LIGHT_S}
        recent = {p: self._recent(s) for p, s in near.items()}
        total, weights = sum(recent.values()), sum(s.weight for s in near.values())
        much = (p for p, s in near.items() if recent[p] * weights > _CLEARLY * s.weight * total)
        return frozenset(p for p in much if light - {p})

    # -- inside

    def _recent(self, project: _Project) -> float:
        return project.recent * math.exp((project.as_of_s - self.clock()) / _MEMORY_S)

    def _forget(self) -> None:
        """Idle projects whose counter is behind anyway: they would be lifted on arrival."""
        for name in [p for p, s in self._projects.items() if not s.live and s.served <= self._floor]:
            del self._projects[name]
