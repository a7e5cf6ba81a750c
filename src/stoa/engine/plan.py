"""What one step runs, while it is being filled."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from stoa.engine.sequence import Sequence
from stoa.errors import StoaError


class Group(enum.IntEnum):
    """Who is served after whom within a step."""

    WITHIN = 0  # interactive, of projects within their share
    OVER = 1  # interactive, of projects beyond it
    BATCH = 2


@dataclass
class StepPlan:
    """Rows of one step: how many of its `todo` tokens each sequence computes now."""

    counts: dict[Sequence, int] = field(default_factory=dict)
    failed: list[tuple[Sequence, StoaError]] = field(default_factory=list)
    preempted: bool = False
    rows: int = 0
    work: float = 0.0
    most_work: float = math.inf
    paused: bool = False  # a running sequence was left out, or gave way to one of its class

    def add(self, seq: Sequence, rows: int, work: float) -> None:
        self.counts[seq] = rows
        self.rows += rows
        self.work += work

    def drop(self, seq: Sequence) -> None:
        """`seq` has given way. Its work stays counted: this step is no time to fill up."""
        self.rows -= self.counts.pop(seq, 0)

    def room(self, most_rows: int, most_seqs: int, work: Callable[[int], float]) -> int:
        """Rows that the step can take of a sequence; one at least if it would be empty. `work`: of so many."""
        if len(self.counts) >= most_seqs:
            return 0
        rows = most_rows - self.rows
        if self.most_work == math.inf or rows <= 0:
            return rows
        spare, one, two = self.most_work - self.work, work(1), work(2)
        fit = 1 + int((spare - one) / (two - one)) if spare >= one else 0
        return min(rows, fit or int(not self.counts))
