"""In which order waiting requests are taken: those whose first token can still be in time, then the late ones.

First come, first served lets a burst that is too much by a fifth make everything late that comes behind it. Here only what
is too much is late. Who is late is known before it is: when steps that others fill up would compute its prompt after
it is due. Whoever has waited for two minutes has one of four places, so that nobody starves, and an overload that lasts
does not end as first come, first served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as Items

from stoa.engine.sequence import Sequence

_LATE_MOST_S, _LATE_SHARE = 120.0, 4  # who has waited longer has one of so many places


class Deadlines:
    """`target_s`: of first tokens, from a request's arrival at the service; 0: requests are taken as they come.
    Times are of the caller's clock."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self._passed = 0  # admitted since one that had waited for too long

    def arrived(self, seq: Sequence, now_s: float) -> None:
        if self.target_s:
            seq.due_s = now_s - seq.request.waited_s + self.target_s

    def order(self, seqs: Items[Sequence], now_s: float, *, step_s: float, room: int) -> list[Sequence]:
        """`seqs`, which come by arrival, as they should be taken. A full step takes `step_s` and has `room` rows for
        prompts. What has had tokens is not late."""
        if not self.target_s:
            return [*seqs]
        early: list[Sequence] = []
        late: list[Sequence] = []
        overdue: deque[Sequence] = deque()
        for seq in seqs:
            in_time = now_s + math.ceil(seq.todo / room) * step_s <= seq.due_s
            if in_time or seq.num_output:
                early.append(seq)
            else:
                (overdue if self._overdue(seq, now_s) else late).append(seq)
        passed = self._passed
        order: list[Sequence] = []
        for seq in early:
            if overdue and passed >= _LATE_SHARE - 1:
                order.append(overdue.popleft())
                passed = 0
            order.append(seq)
            passed += 1
        return [*order, *overdue, *late]

    def admitted(self, seq: Sequence, now_s: float) -> None:
        self._passed = 0 if self._overdue(seq, now_s) else self._passed + 1

    def _overdue(self, seq: Sequence, now_s: float) -> bool:
        return not seq.num_output and now_s - seq.due_s + self.target_s > _LATE_MOST_S
