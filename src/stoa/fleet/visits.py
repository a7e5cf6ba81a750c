"""Requests as one gateway counts them for the autoscaler: sums since its start, and what waits now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Visit:
    """One request, from arrival to end."""

    visits: Visits
    arrived_s: float
    late: bool = False
    answered: bool = False

    def waited_s(self) -> float:
        return self.visits.clock() - self.arrived_s

    def said(self, tokens: int) -> None:
        visits = self.visits
        visits.output_tokens += tokens
        if not self.answered:
            self.answered = True
            visits.waiting.pop(self, None)
            if not self.late and self.waited_s() > visits.ttft_s:
                visits.late += 1

    def left(self) -> None:
        self.visits.waiting.pop(self, None)


@dataclass(eq=False)
class Visits:
    """`ttft_s`: the target for first tokens."""

    ttft_s: float
    clock: Callable[[], float]
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    late: int = 0  # whose first token came, or was found missing, after the target
    waiting: dict[Visit, None] = field(default_factory=dict)  # without a first token, in order of arrival

    def arrived(self, prompt_tokens: int) -> Visit:
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        visit = Visit(self, self.clock())
        self.waiting[visit] = None
        return visit

    def oldest_wait_s(self) -> float:
        oldest = next(iter(self.waiting), None)
        return self.clock() - oldest.arrived_s if oldest else 0.0

    def find_late(self) -> None:
        """Counts those that wait past the target already."""
        now_s = self.clock()
        for visit in self.waiting:
            if now_s - visit.arrived_s <= self.ttft_s:
                break
            if not visit.late:
                visit.late = True
                self.late += 1
