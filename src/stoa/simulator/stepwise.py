"""The slow twin of `core.FastFleet`: every step of every replica, one after the other, as plainly as can be said.

What a step is: all sequences that decode have one row each; what is left of `max_batch_tokens` goes to prompts in
order of coming, those that have had tokens elsewhere first, then those whose first token can still be in time, then the
rest, the last of them perhaps in part; a sequence is admitted while there is a place among `max_num_seqs` and room in
memory for its tokens and one more. A sequence whose prompt (and tokens it has had elsewhere) is computed has its next
token when that step ends. If memory is too small for the next step, the latest comer gives way and is computed again.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable

import numpy as np

from stoa.fleet.policies.router import Ask, ReplicaLoad, View, route
from stoa.simulator.core import HIST_BINS, Bin, Floats, Setup, Totals
from stoa.simulator.stepwise_parts import (
    LATE_MOST_S,
    LATE_SHARE,
    RESUMED,
    Draws,
    Replica,
    Request,
    hist_bin,
    order_of,
)
from stoa.simulator.traces import Requests


class StepwiseFleet:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._profile = setup.profile
        self._random = Draws(setup.seed)
        self._view = View(setup.costs)
        self.routing = setup.routing()
        self._reading: list[tuple[float, int, Request]] = []  # adapters, by the time when they are there
        self._loads: dict[int, ReplicaLoad] = {}
        self.load = np.zeros(setup.room, np.int32)
        self.no_token = np.zeros(setup.room, np.int32)
        self.ttft_hist = np.zeros(HIST_BINS, np.int64)
        self.tpot_hist = np.zeros(HIST_BINS, np.int64)
        self._replicas: dict[int, Replica] = {}
        self._takers: list[int] = []
        self._held: list[Request] = []
        self._coming: list[Request] = []  # latest first
        self._first_missing: dict[int, Request] = {}  # by number, in order of arrival
        self._unjudged: list[Request] = []  # their time for a first token is not over
        self._counts = dict.fromkeys(Totals.__dataclass_fields__, 0.0)
        self._bin = dict.fromkeys(("requests", "prompt", "output", "area", "late"), 0.0)
        self._area_since_s = 0.0
        self._orders = 0
        self._first_s: Floats = np.zeros(0)
        self._end_s: Floats = np.zeros(0)

    # -- arrivals and the choice of a replica

    def record(self, n: int) -> tuple[Floats, Floats]:
        self._first_s, self._end_s = np.full(n, math.nan), np.full(n, math.nan)
        return self._first_s, self._end_s

    def feed(self, requests: Requests) -> None:
        if self._coming:
            raise RuntimeError("arrivals fed before have not come")
        first = int(self._counts["arrived"])
        none = np.full(len(requests), -1)
        columns = (
            requests.arrival_s, requests.prompt_tokens, requests.output_tokens,
            none if requests.project is None else requests.project,
            none if requests.adapter is None else requests.adapter,
        )  # fmt: skip
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self._coming = [Request(first + i, *row) for i, row in enumerate(rows)][::-1]

    def _arrive(self) -> None:
        request = self._coming.pop()
        self._counts["arrived"] += 1
        self._bin["requests"] += 1
        self._bin["prompt"] += request.prompt
        if request.prompt + request.output > self._profile.kv_tokens:
            self._counts["refused"] += 1
            return
        self._unjudged.append(request)
        self._counts["counted"] += request.arrival_s >= self._setup.measure_from_s
        self._first_missing[request.number] = request
        self._in_flight(request.arrival_s, 1)
        self._held.append(request)
        if len(self._held) == 1:
            self._send_held(request.arrival_s)

    def _send_held(self, now_s: float) -> None:
        while self._held:
            slot, delay_s = self._choose(self._held[0], now_s)
            if slot < 0:
                return
            self._send(self._held.pop(0), slot, now_s, delay_s)

    def _choose(self, request: Request, now_s: float) -> tuple[int, float]:
        if self.routing is not None:
            if not self._takers:
                return -1, 0.0
            return self.routing.choose(
                request.number, now_s, request.prompt, request.project, request.adapter
            )
        loads = [self._loads[slot] for slot in self._takers]
        self._view.replicas = loads
        found = route(Ask(str(request.project)), self._view, self._random)
        if found is None:
            return -1, 0.0
        limit = self._setup.queue_limit
        return (-1 if limit and loads[found].running >= limit else self._takers[found]), 0.0

    def _send(self, request: Request, slot: int, now_s: float, delay_s: float) -> None:
        request.slot, request.done = slot, 0
        self.load[slot] += 1
        self._loads[slot].running += 1
        if request.project >= 0:
            self._loads[slot].projects[str(request.project)] = self._of_project(request) + 1
        if not request.emitted:
            self.no_token[slot] += 1
        request.weighs = True
        self._loads[slot].prompt_tokens += request.prompt
        if delay_s > 0:
            insort(self._reading, (now_s + delay_s, request.number, request))
        else:
            self._submit(request, now_s)

    def _submit(self, request: Request, now_s: float) -> None:
        replica = self._replicas[request.slot]
        self._orders += 1
        request.order = self._orders - (RESUMED if request.emitted else 0)
        insort(replica.waiting, request, key=order_of)
        if not replica.in_step:
            replica.step_ends_s = now_s  # a step begins, after everything else of this moment

    # -- steps

    def run(self, now_s: float, *, more: bool = False) -> bool:
        while self._coming or not more:
            replica = min(self._replicas.values(), key=lambda r: r.step_ends_s, default=None)
            event_s = replica.step_ends_s if replica is not None else math.inf
            read_s = self._reading[0][0] if self._reading else math.inf
            if self._coming and self._coming[-1].arrival_s <= min(event_s, read_s, now_s):
                self._arrive()
            elif read_s <= min(event_s, now_s):
                self._submit(self._reading.pop(0)[2], read_s)
            elif replica is not None and event_s <= now_s:
                ended = self._counts["ended"]
                self._step_ends(replica, event_s)
                self._step_begins(replica, event_s)
                if self._counts["ended"] > ended:
                    self._send_held(event_s)
            else:
                return True
        return False

    def _step_ends(self, replica: Replica, now_s: float) -> None:
        for request in list(replica.running):
            request.done += request.rows
            if request.rows and request.done == request.tokens:
                self._token(request, now_s)
                if request.emitted == request.output:
                    replica.running.remove(request)
                    self._end(request, replica, now_s)
            request.rows = 0

    def _step_begins(self, replica: Replica, now_s: float) -> None:
        self._make_room(replica, now_s)
        decoding = [r for r in replica.running if r.decodes]
        context = sum(r.tokens for r in decoding)
        for request in decoding:
            request.rows = 1
        prompt_rows = self._prompt_rows(replica, now_s, len(decoding), context)
        replica.in_step = bool(decoding or prompt_rows)
        step_s = self._profile.step_s(prompt_rows, len(decoding), context)
        replica.step_ends_s = now_s + step_s if replica.in_step else math.inf

    def _prompt_rows(self, replica: Replica, now_s: float, decoding: int, context: int) -> int:
        """Gives the rows that are left to prompts, and says how many they took."""
        left = room = self._profile.max_batch_tokens - decoding
        full_step_s = self._profile.step_s(room, decoding, context)
        for request in replica.running:
            if not request.rows and left:
                request.rows = min(left, request.tokens - request.done)
                left -= request.rows
        while left and len(replica.running) < self._profile.max_num_seqs:
            line = self._next_in_line(replica, now_s, lambda prompt: (1 + (prompt - 1) // room) * full_step_s)
            if not line:
                break
            request = line[0]
            if self._memory(replica) + request.tokens + 1 > self._profile.kv_tokens:
                break
            replica.passed = 0 if line is replica.late else replica.passed + 1
            replica.running.append(line.pop(0))
            request.rows = min(left, request.tokens)
            left -= request.rows
        return room - left

    def _next_in_line(
        self, replica: Replica, now_s: float, first_in_s: Callable[[int], float]
    ) -> list[Request]:
        """The queue whose first comes next: those in time before the late ones, but for the share of who waits for too long.
        `first_in_s`: until the first token of such a prompt, if others fill its steps up."""
        waiting, late = replica.waiting, replica.late
        if late and now_s > late[0].arrival_s + LATE_MOST_S and replica.passed >= LATE_SHARE - 1:
            return late
        while waiting and self._setup.by_deadline and not waiting[0].emitted:
            first = waiting[0]
            if now_s + first_in_s(first.prompt) <= first.arrival_s + self._setup.ttft_s:
                break
            insort(late, waiting.pop(0), key=order_of)
        return waiting or late

    def _memory(self, replica: Replica) -> int:
        """Tokens of context that the next step holds."""
        return sum(r.tokens for r in replica.running)

    def _make_room(self, replica: Replica, now_s: float) -> None:
        while self._memory(replica) > self._profile.kv_tokens:
            latest = max(replica.running, key=order_of)
            replica.running.remove(latest)
            latest.done, latest.decodes = 0, False
            latest.token_s = now_s
            insort(replica.waiting, latest, key=order_of)
            self._counts["kv_preempted"] += 1

    # -- tokens

    def _token(self, request: Request, now_s: float) -> None:
        self._bin["output"] += 1
        self._counts["output_tokens"] += 1
        if not request.emitted:
            self._first(request, now_s)
        elif not request.decodes:  # it was computed again
            stall_s = now_s - request.token_s
            self._counts["stalls"] += 1
            self._counts["stall_sum_s"] += stall_s
            self._counts["stall_most_s"] = max(self._counts["stall_most_s"], stall_s)
        request.emitted += 1
        request.decodes = True
        request.token_s = now_s
        if request.weighs:
            request.weighs = False
            self._loads[request.slot].prompt_tokens -= request.prompt
            if self.routing is not None:
                self.routing.answered(request.number)
        self._has_left(request, now_s)

    def _has_left(self, request: Request, now_s: float) -> None:
        left, request.left = request.left, None
        if left is not None:
            left.moving -= 1
            if not left.moving and not left.running and not left.waiting and not left.late:
                left.emptied_s = now_s

    def _first(self, request: Request, now_s: float) -> None:
        request.first_s = now_s
        ttft_s = now_s - request.arrival_s
        del self._first_missing[request.number]
        self.no_token[request.slot] -= 1
        if request.number < len(self._first_s):
            self._first_s[request.number] = now_s
        if request.arrival_s < self._setup.measure_from_s:
            return
        self._counts["firsts"] += 1
        self._counts["within"] += ttft_s <= self._setup.ttft_s
        self._counts["ttft_sum_s"] += ttft_s
        self._counts["ttft_most_s"] = max(self._counts["ttft_most_s"], ttft_s)
        self.ttft_hist[hist_bin(ttft_s)] += 1

    def _end(self, request: Request, replica: Replica, now_s: float) -> None:
        if request.number < len(self._end_s):
            self._end_s[request.number] = now_s
        if request.output > 1 and request.arrival_s >= self._setup.measure_from_s:
            tpot_s = (now_s - request.first_s) / (request.output - 1)
            self._counts["tpots"] += 1
            self._counts["tpot_sum_s"] += tpot_s
            self.tpot_hist[hist_bin(tpot_s)] += 1
        self._counts["ended"] += 1
        self._in_flight(now_s, -1)
        self._leave(request)
        if not self.load[replica.slot] and not replica.moving:
            replica.emptied_s = now_s

    def _leave(self, request: Request) -> None:
        if self.routing is not None:
            self.routing.left(request.number)
        self.load[request.slot] -= 1
        self._loads[request.slot].running -= 1
        if request.project >= 0:
            projects = self._loads[request.slot].projects
            projects[str(request.project)] -= 1
            if not projects[str(request.project)]:
                del projects[str(request.project)]

    def _of_project(self, request: Request) -> int:
        return self._loads[request.slot].projects.get(str(request.project), 0)

    def _in_flight(self, now_s: float, change: int) -> None:
        self._bin["area"] += self._counts["in_flight"] * (now_s - self._area_since_s)
        self._area_since_s = now_s
        self._counts["in_flight"] += change

    # -- replicas

    def add(self, slot: int, now_s: float) -> None:
        if self.routing is not None:
            self.routing.add(slot)
        self._replicas[slot] = Replica(slot, now_s)
        self.load[slot] = self.no_token[slot] = 0
        self._loads[slot] = ReplicaLoad(str(slot), slots=self._profile.max_num_seqs)
        self._takers.append(slot)
        self._send_held(now_s)

    def close(self, slot: int) -> None:
        if self.routing is not None:
            self.routing.close(slot)
        if slot in self._takers:  # the last one takes its place: the draw is the same as the fast twin's
            self._takers[self._takers.index(slot)] = self._takers[-1]
            self._takers.pop()

    def move(self, slot: int, now_s: float, *, planned: bool) -> int:
        replica = self._replicas[slot]
        reading = sorted((e[2] for e in self._reading if e[2].slot == slot), key=lambda r: r.number)
        self._reading = [entry for entry in self._reading if entry[2].slot != slot]
        leaving = [*sorted((*replica.running, *replica.waiting, *replica.late), key=order_of), *reading]
        replica.running, replica.waiting, replica.late = [], [], []
        replica.in_step, replica.step_ends_s = False, math.inf
        self.no_token[slot] = 0
        kept: list[Request] = []
        for request in leaving:
            self._leave(request)
        for request in leaving:
            self._has_left(request, now_s)
            request.left = replica if planned else None
            replica.moving += planned
            request.done, request.rows, request.decodes = 0, 0, False
            target, delay_s = self._choose(request, now_s)
            if target < 0:
                kept.append(request)
            else:
                self._send(request, target, now_s, delay_s)
        self._held[:0] = kept
        self._counts["moved"] += len(leaving)
        if leaving and not replica.moving:
            replica.emptied_s = now_s
        return len(leaving)

    def drop(self, slot: int) -> None:
        if self.routing is not None:
            self.routing.drop(slot)
        del self._replicas[slot]

    def emptied_s(self, slot: int) -> float:
        replica = self._replicas[slot]
        return math.inf if self.load[slot] or replica.moving else replica.emptied_s

    # -- counts

    def bin(self, now_s: float) -> Bin:
        self._in_flight(now_s, 0)
        over = [r for r in self._unjudged if r.arrival_s + self._setup.ttft_s < now_s]
        self._unjudged = self._unjudged[len(over) :]
        late = sum(not r.first_s - r.arrival_s <= self._setup.ttft_s for r in over)
        counts, self._bin = self._bin, dict.fromkeys(self._bin, 0.0)
        return Bin(
            counts["requests"], counts["prompt"], counts["output"], counts["area"], late,
            len(self._held), self.oldest_wait_s(now_s), int(self._counts["in_flight"]),
        )  # fmt: skip

    def oldest_wait_s(self, now_s: float) -> float:
        oldest = next(iter(self._first_missing.values()), None)
        return now_s - oldest.arrival_s if oldest is not None else 0.0

    def totals(self) -> Totals:
        return Totals(**self._counts)
