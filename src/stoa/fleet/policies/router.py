"""Which replica gets a request: one that holds its adapter and its prefix, as far as load allows.

    cost(r) = wait(r) - saved(r)                              in seconds; the least wins

    wait(r)     until a new request of the project would be served at r, by what is there already (`expected_wait_s`)
    saved(r)    computing the tokens of the prompt that r is believed to have cached, and of `adapter_s`
                min(12, 4 + 64 / (1 + n)) where the adapter is, n requests with it being in flight; where it is
                nowhere, 2 at its two homes

So a holder is taken unless it waits longer than another by what loading and computing again would cost: load is never out
of balance by more than that. Choosing by queue and uncached prefill together is Mooncake's Algorithm 1 (Qin et al., FAST
2025); the bound is in the spirit of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018).
A second copy of an adapter costs two loads, its own and that of what it evicts, and crowds the caches for as long as both
are used. That pays for an adapter that many requests use; the fewer do, the longer they rather wait. The numbers are what
`stoa bench router` finds good between hits and waits. Homes are the first two by rendezvous hashing (Thaler, Ravishankar,
1998): gateways place a cold adapter alike without talking, and where replicas come or go few homes move.

A request without adapter and known prefix goes to the better of two at random (Mitzenmacher, 2001), which needs no
fresh figures of all and, where several gateways send, makes no herd. The two are drawn among the replicas of the lowest
handicap that can have it. Where the better of them waits longer than the next handicap, all are compared: a paid remote
gets what every replica of ours would keep waiting for longer.

`route` only reads. Who sends requests keeps the `View`: `add`, `remove`, `send` and the `Place` it returns.
"""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stoa.fleet.policies.profile import Profile

K = TypeVar("K", bound=Hashable)
_COPY, _RARE, _MOST = 4, 64, 12  # loads that a copy is worth at least, by rarity, and at most: see above
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class ReplicaLoad:
    """What is known of a replica's load. Kept up to date by who sends requests; `route` only reads it."""

    id: str
    slots: int = 64  # sequences that run at once
    running: int = 0  # requests sent to it that have not ended
    prompt_tokens: int = 0  # still to be computed, of requests without a first token
    taking: bool = True  # ready, and not about to end
    handicap_s: float = 0.0  # added to its wait: a slow link, a dear remote, a replica on probation
    projects: dict[str, int] = field(default_factory=dict)  # of `running`, by project; empty: not known
    seed: int = field(init=False)  # of rendezvous hashing, a function of the id

    def __post_init__(self) -> None:
        self.seed = number(self.id) | 1


@dataclass(frozen=True, slots=True)
class Ask:
    """What the router wants to know of a request."""

    project: str
    adapter: str | None = None  # hash of its content
    prompt_tokens: int = 0
    prefix: Sequence[bytes] = ()  # hash chain of its leading blocks, salted by project and adapter
    not_at: frozenset[str] = frozenset()  # replicas that cannot have it
    service: str = ""  # its class, where a plan tells classes apart


@dataclass(frozen=True, slots=True)
class Costs:
    """What the router weighs, in seconds."""

    prompt_token_s: float = 2e-4  # computing a token of a prompt
    running_s: float = 1e-3  # what each running request delays the first token of a new one
    slot_s: float = 0.1  # between two ends of requests at a replica whose slots are all taken
    adapter_s: float = 0.05  # loading an adapter
    block_tokens: int = 64  # of a block of `Ask.prefix`

    @staticmethod
    def of(profile: Profile, *, output_tokens: float = 200.0, block_tokens: int = 64) -> Costs:
        """Of replicas like `profile` with requests that generate `output_tokens` on average."""
        full_step_s = profile.step_s(0, profile.max_num_seqs)
        return Costs(
            prompt_token_s=profile.prompt_row_s + profile.fixed_s / profile.max_batch_tokens,
            running_s=profile.decode_row_s,
            slot_s=output_tokens * full_step_s / profile.max_num_seqs,
            adapter_s=profile.adapter_load_s,
            block_tokens=block_tokens,
        )


class Holdings(Generic[K]):
    """What each replica is believed to hold (adapters, or blocks of prefixes), at most `most` things each, the longest
    unused forgotten first. An approximation by what was sent there, as the gateways of llm-d and SGLang keep it,
    corrected by what replicas tell (`replace`, `drop`)."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[str, OrderedDict[K, None]] = {}
        self._holders: dict[K, tuple[str, ...]] = {}

    def holders(self, thing: K) -> tuple[str, ...]:
        """Ids of the replicas that hold it, in the order in which they got it."""
        return self._holders.get(thing, ())

    def holds(self, replica: str, thing: K) -> bool:
        return thing in self._held.get(replica, ())

    def held(self, replica: str) -> list[K]:
        """What the replica holds, longest unused first."""
        return list(self._held.get(replica, ()))

    def note(self, replica: str, things: Iterable[K]) -> None:
        """The replica has, or is about to have, all of `things`; the last of them is the most recently used."""
        mine, holders = self._held.setdefault(replica, OrderedDict()), self._holders
        for thing in things:
            if thing in mine:
                mine.move_to_end(thing)
            else:
                mine[thing] = None
                holders[thing] = (*holders[thing], replica) if thing in holders else (replica,)
        while len(mine) > self.most:
            self._without(replica, mine.popitem(last=False)[0])

    def drop(self, replica: str, thing: K) -> None:
        """The replica has evicted it."""
        mine = self._held.get(replica)
        if mine is not None and thing in mine:
            del mine[thing]
            self._without(replica, thing)

    def replace(self, replica: str, things: Iterable[K]) -> None:
        """The replica holds exactly `things`. Leave in what is on its way there."""
        true = dict.fromkeys(things)
        for thing in [t for t in self._held.get(replica, ()) if t not in true]:
            self.drop(replica, thing)
        known = self._held.get(replica, ())
        self.note(replica, [t for t in true if t not in known])

    def forget(self, replica: str) -> None:
        """The replica is gone, or has lost all."""
        for thing in self._held.pop(replica, ()):
            self._without(replica, thing)

    def depths(self, chain: Sequence[K]) -> dict[str, int]:
        """Replica id -> how many leading things of the chain it holds, at least one.

        Who holds a thing of a chain holds those before it (`note` chains from their end), so the holders only get
        fewer along it: a binary search for each place where they do.
        """
        found: dict[str, int] = {}
        holders = self._holders
        depth = len(chain)
        while True:
            more = len(found)
            depth = bisect_left(chain, True, hi=depth, key=lambda t: len(holders.get(t, ())) <= more)
            if not depth:
                return found
            for replica in holders[chain[depth - 1]]:
                found.setdefault(replica, depth)

    def _without(self, replica: str, thing: K) -> None:
        holders = self._holders[thing]
        if len(holders) == 1:
            del self._holders[thing]
        else:
            self._holders[thing] = tuple(r for r in holders if r != replica)


@dataclass(slots=True)
class Place:
    """A request's place at a replica, to be given back by `leave`."""

    load: ReplicaLoad
    ask: Ask
    flying: Counter[str]  # the view's
    prompt_tokens: int  # what the request still adds to `load.prompt_tokens`

    def answered(self) -> None:
        """The first token has come."""
        self.load.prompt_tokens -= self.prompt_tokens
        self.prompt_tokens = 0

    def leave(self) -> None:
        """The request has ended, or has moved elsewhere."""
        self.answered()
        self.load.running -= 1
        _one_less(self.load.projects, self.ask.project)
        if self.ask.adapter is not None:
            _one_less(self.flying, self.ask.adapter)


class View:
    """What `route` looks at: one base model's replicas, their load, and what they are believed to hold."""

    def __init__(
        self, costs: Costs | None = None, *, adapters_each: int = 1024, blocks_each: int = 16_384
    ) -> None:
        """`adapters_each`, `blocks_each`: how many a replica is believed to hold at most."""
        self.costs = costs or Costs()
        self.replicas: list[ReplicaLoad] = []
        self.index: dict[str, int] = {}  # replica id -> place in `replicas`
        self.flying: Counter[str] = Counter()  # requests in flight, by adapter
        self.adapters: Holdings[str] = Holdings(adapters_each)
        self.prefixes: Holdings[bytes] = Holdings(blocks_each)

    def add(self, load: ReplicaLoad) -> None:
        self.index[load.id] = len(self.replicas)
        self.replicas.append(load)

    def remove(self, replica: str) -> None:
        """The replica is gone, with what it held. Indices after it move."""
        self.replicas = [r for r in self.replicas if r.id != replica]
        self.index = {r.id: index for index, r in enumerate(self.replicas)}
        self.adapters.forget(replica)
        self.prefixes.forget(replica)

    def send(self, index: int, ask: Ask) -> Place:
        """Counts the request at the replica that `route` chose, which will hold its adapter and its prefix."""
        load = self.replicas[index]
        tokens = ask.prompt_tokens
        if ask.adapter is not None:
            self.adapters.note(load.id, (ask.adapter,))
            self.flying[ask.adapter] += 1
        if ask.prefix:
            known = self.prefixes.depths(ask.prefix).get(load.id, 0)
            tokens = max(1, tokens - known * self.costs.block_tokens)
            self.prefixes.note(load.id, reversed(ask.prefix))
        load.running += 1
        load.prompt_tokens += tokens
        load.projects[ask.project] = load.projects.get(ask.project, 0) + 1
        return Place(load, ask, self.flying, tokens)


def route(ask: Ask, view: View, rng: random.Random) -> int | None:
    """Index in `view.replicas` of the replica to send the request to; None: nobody takes requests.

    `rng` chooses among equals and, without affinity, the two that are compared. Same view, ask and state of `rng`, same
    answer.
    """
    replicas = view.replicas
    saved = _saved_s(ask, view)
    if not saved:
        two, next_s = _two(ask, replicas, rng)
        best, cost_s = _least(two, saved, ask, view, rng)
        if cost_s > next_s:
            best, _ = _least(range(len(replicas)), saved, ask, view, rng)
        return best
    near = [view.index[replica] for replica in saved]
    best, cost_s = _least(near, saved, ask, view, rng)
    if cost_s < 0:  # nobody else can cost less than nothing
        return best
    return _least(range(len(replicas)), saved, ask, view, rng)[0]


def expected_wait_s(load: ReplicaLoad, project: str, costs: Costs) -> float:
    """Seconds until a new request of the project would get the replica's attention.

    Projects share a replica fairly, so a request waits for those of its own project and, of each other project there, for
    at most as many and one more: who floods a replica waits for all of it, others do not, and need not avoid it.
    """
    running = load.running
    if running <= 0:
        return load.handicap_s
    ahead = running  # of them
    projects = load.projects
    if projects:
        mine = projects.get(project, 0)
        rivals = len(projects) - 1 if mine else len(projects)
        ahead = mine + rivals * (mine + 1)
        if ahead > running:
            ahead = running
    wait_s = load.handicap_s + running * costs.running_s
    if load.prompt_tokens:
        wait_s += load.prompt_tokens * costs.prompt_token_s * ahead / running
    if running >= load.slots:
        wait_s += (1 + (running - load.slots) * ahead / running) * costs.slot_s
    return wait_s


def prefix_chain(
    tokens: Sequence[int], salt: bytes, *, block_tokens: int = 64, most: int = 256
) -> list[bytes]:
    """Hash chain of the full leading blocks of a prompt, `most` at most: `Ask.prefix`. `salt`: up to 64 bytes that tell
    project and adapter, so that neither meets the other's prefixes."""
    full = array("i", tokens[: min(len(tokens) // block_tokens, most) * block_tokens]).tobytes()
    size = block_tokens * array("i").itemsize
    chain = [salt]
    for start in range(0, len(full), size):
        chain.append(hashlib.blake2b(full[start : start + size], digest_size=16, key=chain[-1]).digest())
    return chain[1:]


def _saved_s(ask: Ask, view: View) -> dict[str, float]:
    """Seconds that the request saves at those replicas that have something of what it needs, or are home to it."""
    costs = view.costs
    saved: dict[str, float] = {}
    if ask.prefix:
        for replica, depth in view.prefixes.depths(ask.prefix).items():
            saved[replica] = min(depth * costs.block_tokens, ask.prompt_tokens) * costs.prompt_token_s
    if ask.adapter is not None:
        there: Sequence[str] = view.adapters.holders(ask.adapter)
        loads = min(_MOST, _COPY + _RARE / (1 + view.flying.get(ask.adapter, 0)))
        if not there:
            there, loads = homes(ask.adapter, view.replicas, ask.not_at), 2
        for replica in there:
            saved[replica] = saved.get(replica, 0.0) + loads * costs.adapter_s
    return saved


def _least(
    indices: Iterable[int], saved: dict[str, float], ask: Ask, view: View, rng: random.Random
) -> tuple[int | None, float]:
    """(The one of least cost that takes requests, one of several at random; its cost)."""
    best, best_s, equals = None, math.inf, 1
    replicas, costs, project = view.replicas, view.costs, ask.project
    for index in indices:
        load = replicas[index]
        if not load.taking or (ask.not_at and load.id in ask.not_at):
            continue
        cost_s = expected_wait_s(load, project, costs) - saved.get(load.id, 0.0)
        if cost_s < best_s:
            best, best_s, equals = index, cost_s, 1
        elif cost_s == best_s:
            equals += 1
            if rng.random() * equals < 1:
                best = index
    return best, best_s


def homes(adapter: str, replicas: Sequence[ReplicaLoad], not_at: Container[str] = ()) -> list[str]:
    """Ids of the two replicas that take requests, but for `not_at`, where the adapter is placed first."""
    key = number(adapter)
    first, second = "", ""
    first_weight = second_weight = -1
    for load in replicas:
        weight = key * load.seed & _MASK
        if weight > second_weight and load.taking and load.id not in not_at:
            if weight > first_weight:
                second, second_weight = first, first_weight
                first, first_weight = load.id, weight
            else:
                second, second_weight = load.id, weight
    return [home for home in (first, second) if home]


def _two(ask: Ask, replicas: Sequence[ReplicaLoad], rng: random.Random) -> tuple[Sequence[int], float]:
    """(Two different ones at random, of those of the lowest handicap that take the request, fewer if there are no more;
    the next handicap)."""
    lowest_s = next_s = math.inf
    found: list[int] = []
    for index, load in enumerate(replicas):
        handicap_s = load.handicap_s
        if handicap_s > next_s or not load.taking or (ask.not_at and load.id in ask.not_at):
            continue
        if handicap_s == lowest_s:
            found.append(index)
        elif handicap_s < lowest_s:
            lowest_s, next_s, found = handicap_s, lowest_s, [index]
        else:
            next_s = handicap_s
    if len(found) <= 2:
        return found, next_s
    first = int(rng.random() * len(found))
    second = int(rng.random() * (len(found) - 1))
    return (found[first], found[second + (second >= first)]), next_s


def _one_less(counts: dict[str, int], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def number(name: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
