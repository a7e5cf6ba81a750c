"""`stoa bench router`: what routing by adapter is worth, in a small model of a fleet's caches, and what a decision takes.

The model: a replica admits requests in turn to its slots, loads their adapters one at a time beside its other work,
computes prompts one after another, in the order in which their adapters are there, and generates. It holds `each`
adapters; those that no admitted request uses are evicted, longest unused first. Requests arrive as a Poisson process and
draw adapters by Zipf's law. Every router sees the same requests. A hit is a request that needs no load of its own; so
that hits are not bought by queues, waits for the first token and the work of the busiest replica stand beside.
"""

from __future__ import annotations

import heapq
import random
import statistics
import time
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any, Protocol

from stoa.bench.drive import percentile
from stoa.bench.machine import machine_facts
from stoa.fleet.policies.router import Ask, Costs, Place, ReplicaLoad, View, number, route

_TOKEN_S = 2e-4  # of a prompt
_OUTPUT_S = 2.0  # mean time from first token to last
_SLOTS = 24  # of a replica
_PROMPT = 512  # mean tokens
_WARM = 0.2  # share of the requests after which counting begins


@dataclass(frozen=True)
class Workload:
    replicas: int = 4
    adapters: int = 200
    each: int = 32  # adapters that a replica holds
    zipf: float = 1.0
    load: float = 0.4  # share of the time that a replica computes prompts
    requests: int = 20_000
    adapter_s: float = 0.2  # to load one
    seed: int = 0


@dataclass(frozen=True)
class Arrival:
    at_s: float
    ask: Ask
    output_s: float


@dataclass
class Journey:
    """A request at its replica."""

    arrival: Arrival
    place: Any  # what its router remembers

    @property
    def adapter(self) -> str:
        return str(self.arrival.ask.adapter)


@dataclass
class Replica:
    """The model of one."""

    each: int
    slots: int = _SLOTS  # free ones
    held: OrderedDict[str, float] = field(default_factory=OrderedDict)  # adapter -> when it is there
    users: dict[str, int] = field(default_factory=dict)
    waiting: deque[Journey] = field(default_factory=deque)  # for a slot
    ready: deque[Journey] = field(default_factory=deque)  # to be computed
    loader_free_s: float = 0.0
    work_s: float = 0.0
    busy: bool = False

    def take(self, adapter: str, now_s: float, load_s: float) -> tuple[bool, float]:
        """A request is admitted: (hit, when its adapter is there)."""
        hit = adapter in self.held
        if hit:
            self.held.move_to_end(adapter)
        else:
            self.loader_free_s = max(self.loader_free_s, now_s) + load_s
            self.held[adapter] = self.loader_free_s
        self.users[adapter] = self.users.get(adapter, 0) + 1
        while len(self.held) > self.each:
            del self.held[next(a for a in self.held if not self.users.get(a))]
        return hit, max(now_s, self.held[adapter])


class Router(Protocol):
    def choose(self, ask: Ask) -> int: ...

    def sent(self, index: int, ask: Ask) -> Any:
        """What `answered` and `ended` get."""

    def answered(self, place: Any) -> None: ...

    def ended(self, place: Any) -> None: ...


class Ours:
    """`route`, told nothing of evictions."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        costs = Costs(prompt_token_s=_TOKEN_S, adapter_s=workload.adapter_s, slot_s=_OUTPUT_S / _SLOTS)
        self.view = View(costs, adapters_each=workload.each)
        self.rng = rng
        for i in range(workload.replicas):
            self.view.add(ReplicaLoad(f"replica-{i}", slots=_SLOTS))

    def choose(self, ask: Ask) -> int:
        index = route(ask, self.view, self.rng)
        assert index is not None
        return index

    def sent(self, index: int, ask: Ask) -> Place:
        return self.view.send(index, ask)

    def answered(self, place: Place) -> None:
        place.answered()

    def ended(self, place: Place) -> None:
        place.leave()


class ByCount:
    """What the peers know: how many requests each replica has."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        self.running = [0] * workload.replicas
        self.rng = rng

    def sent(self, index: int, ask: Ask) -> int:
        self.running[index] += 1
        return index

    def answered(self, place: int) -> None:
        pass

    def ended(self, place: int) -> None:
        self.running[place] -= 1


class Random(ByCount):
    def choose(self, ask: Ask) -> int:
        return self.rng.randrange(len(self.running))


class TwoChoices(ByCount):
    """The one with fewer requests of two at random."""

    def choose(self, ask: Ask) -> int:
        return min(self.rng.sample(range(len(self.running)), 2), key=self.running.__getitem__)


class LeastRequests(ByCount):
    def choose(self, ask: Ask) -> int:
        return self.running.index(min(self.running))


class ConsistentHash(ByCount):
    """A ring with 100 points for each replica (Karger et al., 1997)."""

    bound: float | None = None

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        super().__init__(workload, rng)
        ring = [(number(f"replica-{i}/{k}"), i) for i in range(workload.replicas) for k in range(100)]
        self.points, self.owners = zip(*sorted(ring), strict=True)

    def choose(self, ask: Ask) -> int:
        start = bisect(self.points, number(str(ask.adapter)))
        for step in range(len(self.owners)):
            owner: int = self.owners[(start + step) % len(self.owners)]
            if self.bound is None or self.running[owner] < self._most():
                return owner
        raise AssertionError("somebody is below the mean")

    def _most(self) -> float:
        return (self.bound or 0) * (sum(self.running) + 1) / len(self.running)


class BoundedHash(ConsistentHash):
    """With bounded loads: nobody has more than 1.25 times the mean (Mirrokni et al., 2018; HAProxy's and Envoy's)."""

    bound = 1.25


ROUTERS: dict[str, Callable[[Workload, random.Random], Router]] = {
    "stoa": Ours,
    "random": Random,
    "two choices": TwoChoices,
    "least requests": LeastRequests,
    "consistent hash": ConsistentHash,
    "bounded hash": BoundedHash,
}


def arrivals(workload: Workload) -> list[Arrival]:
    rng = random.Random(workload.seed)
    weights = list(accumulate(1 / rank**workload.zipf for rank in range(1, workload.adapters + 1)))
    names = [f"{workload.seed}-adapter-{i}" for i in range(workload.adapters)]
    per_s = workload.load * workload.replicas / (_PROMPT * _TOKEN_S)
    found, now_s = [], 0.0
    for _ in range(workload.requests):
        now_s += rng.expovariate(per_s)
        adapter = rng.choices(names, cum_weights=weights)[0]
        ask = Ask(adapter, adapter, 1 + int(rng.expovariate(1 / _PROMPT)))  # a project for each adapter
        found.append(Arrival(now_s, ask, rng.expovariate(1 / _OUTPUT_S)))
    return found


class Replay:
    """One router before the replicas. Events: (time, order, what happens, replica, request)."""

    def __init__(self, workload: Workload, asked: Sequence[Arrival], router: Router) -> None:
        self.workload = workload
        self.router = router
        self.replicas = [Replica(workload.each) for _ in range(workload.replicas)]
        self.order = count()
        self.events: list[tuple[float, int, str, int, Journey]] = []
        for arrival in asked:
            self.later(arrival.at_s, "arrive", -1, Journey(arrival, None))
        self.counted_from_s = asked[int(_WARM * len(asked))].at_s
        self.waits: list[float] = []
        self.hits = 0

    def later(self, at_s: float, what: str, index: int, journey: Journey) -> None:
        heapq.heappush(self.events, (at_s, next(self.order), what, index, journey))

    def run(self) -> dict[str, float]:
        while self.events:
            now_s, _, what, index, journey = heapq.heappop(self.events)
            if what == "arrive":
                index = self.arrive(journey)
            elif what == "ready":
                self.replicas[index].ready.append(journey)
            elif what == "first token":
                self.answer(now_s, index, journey)
            else:
                self.end(index, journey)
            self.go_on(now_s, index)
        work = [r.work_s for r in self.replicas]
        return {
            "hit_rate": self.hits / len(self.waits),
            "wait_ms_p50": 1e3 * statistics.median(self.waits),
            "wait_ms_p99": 1e3 * percentile(self.waits, 0.99),
            "busiest": max(work) / statistics.mean(work),
        }

    def arrive(self, journey: Journey) -> int:
        index = self.router.choose(journey.arrival.ask)
        journey.place = self.router.sent(index, journey.arrival.ask)
        self.replicas[index].waiting.append(journey)
        return index

    def answer(self, now_s: float, index: int, journey: Journey) -> None:
        self.router.answered(journey.place)
        self.replicas[index].busy = False
        if journey.arrival.at_s >= self.counted_from_s:
            self.waits.append(now_s - journey.arrival.at_s)
        self.later(now_s + journey.arrival.output_s, "end", index, journey)

    def end(self, index: int, journey: Journey) -> None:
        self.router.ended(journey.place)
        self.replicas[index].users[journey.adapter] -= 1
        self.replicas[index].slots += 1

    def go_on(self, now_s: float, index: int) -> None:
        """Admits who finds a slot, and computes the next prompt."""
        replica = self.replicas[index]
        while replica.slots and replica.waiting:
            journey = replica.waiting.popleft()
            replica.slots -= 1
            hit, there_s = replica.take(journey.adapter, now_s, self.workload.adapter_s)
            self.hits += hit and journey.arrival.at_s >= self.counted_from_s
            self.later(there_s, "ready", index, journey)
        if replica.ready and not replica.busy:
            journey = replica.ready.popleft()
            took_s = journey.arrival.ask.prompt_tokens * _TOKEN_S
            replica.busy = True
            replica.work_s += took_s
            self.later(now_s + took_s, "first token", index, journey)


def decision_us(replicas: int = 64, adapters: int = 2000, blocks: int = 0, decisions: int = 2000) -> float:
    """Median microseconds of `route` with `replicas` of 64 adapters each, of `blocks` shared leading blocks at most."""
    rng = random.Random(0)
    view = View(adapters_each=64)
    for i in range(replicas):
        view.add(ReplicaLoad(f"replica-{i}"))
    asks = [_ask(rng, adapters, blocks) for _ in range(5000)]
    for ask in asks:
        view.send(route(ask, view, rng) or 0, ask)
    took_us = []
    for ask in asks[:decisions]:
        started = time.perf_counter_ns()
        route(ask, view, rng)
        took_us.append((time.perf_counter_ns() - started) / 1e3)
    return statistics.median(took_us)


def _ask(rng: random.Random, adapters: int, blocks: int) -> Ask:
    adapter = int(adapters * rng.random() ** 3)
    prefix = [f"{adapter}/{k}".encode() for k in range(rng.randint(0, blocks))]
    return Ask(f"project-{adapter % 50}", f"adapter-{adapter}", 1024, prefix)


def run(
    *,
    replicas: int = 4,
    adapters: int = 200,
    each: int = 32,
    zipf: Sequence[float] = (0.8, 1.0, 1.2),
    load: float = 0.4,
    requests: int = 20_000,
    seeds: int = 5,
) -> dict[str, Any]:
    """Means over `seeds` draws of the requests."""
    rows = []
    for exponent in zipf:
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in ROUTERS}
        for seed in range(seeds):
            workload = Workload(replicas, adapters, each, exponent, load, requests, seed=seed)
            asked = arrivals(workload)
            for name, build in ROUTERS.items():
                figures[name].append(Replay(workload, asked, build(workload, random.Random(seed))).run())
        for name, found in figures.items():
            means = {key: statistics.mean(f[key] for f in found) for key in found[0]}
            rows.append({
                "zipf": exponent,
                "router": name,
                "hit_rate": round(means["hit_rate"], 4),
                "wait_ms_p50": round(means["wait_ms_p50"], 1),
                "wait_ms_p99": round(means["wait_ms_p99"], 1),
                "busiest": round(means["busiest"], 3),
            })  # fmt: skip
    return {
        "machine": machine_facts(),
        "workload": {"replicas": replicas, "adapters": adapters, "each": each, "load": load,
                     "requests": requests, "seeds": seeds},
        "decision_us": {
            "adapter": round(decision_us(), 1),
            "adapter and prefix": round(decision_us(blocks=64), 1),
        },
        "rows": rows,
    }  # fmt: skip
