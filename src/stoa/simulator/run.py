"""The loop: arrivals and steps in `core`, machines in `market`, and every tick the policy's turn."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from stoa.fleet.policies.facts import Autoscaler, Bounds, Decision, Offer, ReplicaSeen, Slo, Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.simulator import core, stepwise
from stoa.simulator.account import Account
from stoa.simulator.arrivals import Arrivals
from stoa.simulator.history import History
from stoa.simulator.market import Machine, Markets, Zone
from stoa.simulator.options import Options
from stoa.simulator.result import Result
from stoa.simulator.traces import Requests

M = TypeVar("M")
_NEVER = math.inf


def simulate(
    requests: Iterable[Requests],
    zones: Sequence[Zone],
    profile: Profile,
    autoscaler: Autoscaler[M],
    *,
    slo: Slo,
    bounds: Bounds | None = None,
    seed: int = 0,
    tick_s: float = 10.0,
    until_s: float | None = None,
    options: Options | None = None,
) -> Result:
    """Runs the trace through a fleet that begins with no machine. `until_s`: what is paid and counted ends there; by
    default at the last arrival, rounded up to a tick. InvalidTrace if the requests are out of order."""
    bounds, options = bounds or Bounds(), options or Options()
    world = _World(Arrivals(requests, until_s), zones, profile, slo, seed, tick_s, options)
    memory, now_s, end_s = autoscaler.initial(), 0.0, until_s if until_s is not None else _NEVER
    while True:
        seen = world.look(now_s, profile, slo, bounds)
        decision, memory = autoscaler.decide(seen, memory)
        world.carry_out(decision, now_s)
        now_s += tick_s
        world.pass_until(min(now_s, end_s))
        if end_s == _NEVER and world.exhausted:
            end_s = now_s
        if now_s >= end_s:
            break
    seen = world.look(end_s, profile, slo, bounds)
    world.stop_counting(end_s)
    now_s = end_s
    while world.in_flight and now_s < end_s + options.runout_s:
        decision, memory = autoscaler.decide(seen, memory)
        world.carry_out(decision, now_s)
        now_s += tick_s
        world.pass_until(now_s)
        seen = world.look(now_s, profile, slo, bounds)
    return world.result(end_s)


class _World:
    def __init__(
        self,
        arrivals: Arrivals,
        zones: Sequence[Zone],
        profile: Profile,
        slo: Slo,
        seed: int,
        tick_s: float,
        options: Options,
    ) -> None:
        self._arrivals = arrivals
        self._options = options
        setup = core.Setup(
            profile, slo.ttft_s, options.measure_from_s, seed, options.room, options.queue_limit,
            adapters_each=options.adapters_each if arrivals.has_adapters else 0,
            by_deadline=options.order == "deadline",
        )  # fmt: skip
        fast = core.available() and not options.stepwise
        self.fleet: core.Fleet = core.FastFleet(setup) if fast else stepwise.StepwiseFleet(setup)
        self._recorded = self.fleet.record(options.record) if options.record else None
        self._markets = Markets(
            zones, notice_s=options.notice_s, startup_spread=options.startup_spread, rng=random.Random(seed)
        )
        self._history = History(tick_s, max(1, math.ceil(options.history_s / tick_s)))
        self.account = Account(options.measure_from_s)
        self._alive: dict[str, Machine] = {}
        self._due: list[tuple[float, int, Machine]] = []  # ready or ending, by time
        self._sequence = 0
        self._free = list(range(options.room - 1, -1, -1))
        self._serving: dict[str, Machine] = {}  # ready
        self._lingering: dict[str, Machine] = {}  # draining, and takes requests because nobody else does
        self._emptying: dict[str, Machine] = {}  # closed, and not ended
        self._seen: dict[str, ReplicaSeen] = {}
        self.in_flight = 0

    @property
    def exhausted(self) -> bool:
        """No arrival is left."""
        return self._arrivals.exhausted

    # -- time

    def pass_until(self, now_s: float) -> None:
        while True:
            at_s = min(self._due[0][0] if self._due else _NEVER, self._markets.next_notice_s())
            if at_s > now_s:
                break
            self._run(at_s)
            self._settle_up(at_s)
        self._run(now_s)
        self._end_empty(now_s)

    def _run(self, now_s: float) -> None:
        while not self.fleet.run(now_s, more=not self._arrivals.exhausted):
            chunk = self._arrivals.next()
            if chunk is not None:
                self.fleet.feed(chunk)
        takers = len(self._serving) + len(self._lingering)
        self.account.serve(now_s, takers, 0.0 if takers else self.fleet.oldest_wait_s(now_s))

    def _settle_up(self, now_s: float) -> None:
        """What machines do at this moment."""
        for machine in self._markets.notices(now_s):
            self._markets.preempted(machine, now_s)
            self.account.preemptions += now_s >= self._options.measure_from_s
            self._drain(machine, now_s)
            if machine.ends_s <= now_s:
                self._close(machine)
            self._at(machine.ends_s, machine)
        while self._due and self._due[0][0] <= now_s:
            machine = heapq.heappop(self._due)[2]
            if machine.ended_s is not None:
                continue
            if machine.ends_s <= now_s:
                self._end(machine, now_s)
            elif machine.state == "starting" and machine.ready_s <= now_s:
                self._ready(machine, now_s)
        self._relieve(now_s)

    def _at(self, at_s: float, machine: Machine) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (at_s, self._sequence, machine))

    # -- machines

    def _launch(self, offer: Offer, now_s: float) -> None:
        machine = self._markets.launch(offer, now_s)
        if machine is None:
            self.account.refusals += now_s >= self._options.measure_from_s
            return
        self.account.launches += now_s >= self._options.measure_from_s
        self._alive[machine.id] = machine
        self._at(machine.ready_s, machine)

    def _ready(self, machine: Machine, now_s: float) -> None:
        if not self._free:
            raise ValueError(f"more than {self._options.room} replicas at once; raise Options.room")
        machine.state, machine.since_s, machine.slot = "ready", now_s, self._free.pop()
        self._serving[machine.id] = machine
        self.fleet.add(machine.slot, now_s)

    def _drain(self, machine: Machine, now_s: float) -> None:
        """It takes nothing new, unless nobody else does."""
        if machine.state == "draining":
            return
        machine.state, machine.since_s = "draining", now_s
        if self._serving.pop(machine.id, None) is not None:
            self._lingering[machine.id] = machine

    def _close(self, machine: Machine) -> None:
        if self._lingering.pop(machine.id, None) is not None:
            self.fleet.close(machine.slot)
            self._emptying[machine.id] = machine

    def _relieve(self, now_s: float) -> None:
        """Draining machines are closed, and their requests go elsewhere, once there is an elsewhere."""
        if not self._serving:
            return
        for machine in list(self._lingering.values()):
            self._close(machine)
        for machine in self._emptying.values():
            if not machine.moved and (machine.ends_s < _NEVER or self._options.drain == "migrate"):
                machine.moved = True
                self.fleet.move(machine.slot, now_s, planned=True)

    def _end(self, machine: Machine, now_s: float) -> None:
        if machine.slot >= 0:
            self._drain(machine, now_s)
            self._close(machine)
            self.fleet.move(machine.slot, now_s, planned=False)
            self.fleet.drop(machine.slot)
            self._free.append(machine.slot)
            self._emptying.pop(machine.id, None)
        self._markets.end(machine, now_s)
        self.account.pay(machine, now_s)
        del self._alive[machine.id]
        self._seen.pop(machine.id, None)

    def _end_empty(self, now_s: float) -> None:
        """Drained machines are given back when their last request is gone. One that a notice drains serves to its end
        while nobody else does."""
        idle = [m for m in self._lingering.values() if m.ends_s == _NEVER]
        for machine in (*idle, *self._emptying.values()):
            ends_s = max(self.fleet.emptied_s(machine.slot), machine.since_s + self._options.handover_s)
            if ends_s <= now_s:
                self._end(machine, ends_s)

    # -- the policy's turn

    def look(self, now_s: float, profile: Profile, slo: Slo, bounds: Bounds) -> Snapshot:
        if now_s > 0:
            seen = self.fleet.bin(now_s)
            self.in_flight = seen.in_flight
            self._history.add(seen)
            self.account.tick(now_s, seen, self._alive.values())
        return Snapshot(
            now_s, self._replicas(), self._history.demand(), tuple(self._markets.seen.values()), profile, slo, bounds
        )  # fmt: skip

    def _replicas(self) -> tuple[ReplicaSeen, ...]:
        load, no_token = self.fleet.load, self.fleet.no_token
        seen = self._seen
        for m in self._alive.values():
            running, waiting = (int(load[m.slot]), int(no_token[m.slot])) if m.slot >= 0 else (0, 0)
            old = seen.get(m.id)
            if old is None or (old.running, old.waiting, old.state, old.ends_s) != (
                running, waiting, m.state, m.ends_s,
            ):  # fmt: skip
                seen[m.id] = ReplicaSeen(m.id, m.offer, m.state, m.since_s, running, waiting, m.ends_s)
        return tuple(seen[key] for key in self._alive)

    def carry_out(self, decision: Decision, now_s: float) -> None:
        for name in decision.drain:
            machine = self._alive.get(name)
            if machine is None:
                raise ValueError(f"the policy drains {name!r}, which is not there")
            if machine.state == "starting":
                self._end(machine, now_s)
            else:
                self._drain(machine, now_s)
        for launch in decision.launch:
            for _ in range(launch.count):
                self._launch(launch.offer, now_s)
        self._relieve(now_s)
        self._end_empty(now_s)

    # -- the end

    def stop_counting(self, now_s: float) -> None:
        self.account.close(now_s, self._alive.values())

    def result(self, end_s: float) -> Result:
        return self.account.result(self.fleet, end_s, self._recorded)
