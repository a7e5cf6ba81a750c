"""The fleet's arithmetic in C: arrivals, queues, steps and counts between two looks of the control loop.

`FastFleet` and its slow twin `stepwise.StepwiseFleet` have the same methods and give the same results; the twin is the
truth in tests, and what runs where there was no C compiler.
"""

from __future__ import annotations

import ctypes
import functools
import math
import random
from ctypes import c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stoa.fleet.policies.profile import Profile
from stoa.fleet.policies.router import Costs
from stoa.simulator.routing import Routing
from stoa.simulator.traces import Requests

Floats = NDArray[np.float64]
HIST_LEAST_S, HIST_MOST_S, HIST_BINS = 1e-5, 1e7, 4096  # logarithmic bins 0.7 % wide

_TOTALS = (
    "arrived", "refused", "ended", "counted", "firsts", "within", "ttft_sum_s", "ttft_most_s", "tpots", "tpot_sum_s",
    "kv_preempted", "moved", "stalls", "stall_sum_s", "stall_most_s", "output_tokens", "in_flight",
)  # fmt: skip
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sim_new": (c_void_p, (c_void_p, c_void_p, c_void_p, c_double, c_double, c_uint64, c_int32)),
    "sim_free": (None, (c_void_p,)),
    "sim_record": (None, (c_void_p, c_int64, c_void_p, c_void_p)),
    "sim_route": (None, (c_void_p, c_void_p, c_void_p)),
    "sim_feed": (c_int, (c_void_p, c_int64) + (c_void_p,) * 5),
    "sim_add": (c_int, (c_void_p, c_int32, c_double)),
    "sim_close": (None, (c_void_p, c_int32)),
    "sim_move": (c_int64, (c_void_p, c_int32, c_double, c_int)),
    "sim_drop": (None, (c_void_p, c_int32)),
    "sim_run": (c_int, (c_void_p, c_double, c_int)),
    "sim_bin": (None, (c_void_p, c_double, c_void_p)),
    "sim_arrays": (None, (c_void_p, c_void_p)),
    "sim_emptied_s": (c_double, (c_void_p, c_int32)),
    "sim_oldest_wait_s": (c_double, (c_void_p, c_double)),
    "sim_totals": (None, (c_void_p, c_void_p)),
}  # fmt: skip


_CHOOSE = ctypes.CFUNCTYPE(c_int, c_int64, c_double, c_int32, c_int32, c_int32, ctypes.POINTER(c_double))
_TOLD = ctypes.CFUNCTYPE(None, c_int64, c_int)


@dataclass(frozen=True, slots=True)
class Bin:
    """What happened since the last bin, and what is now."""

    requests: float
    prompt_tokens: float
    output_tokens: float
    in_flight_s: float  # integral of requests in flight
    late: float
    held: int
    oldest_wait_s: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the whole run. Those of first tokens and tokens count requests that arrived at or after `measure_from_s`."""

    arrived: float
    refused: float  # longer than a replica's memory
    ended: float
    counted: float  # arrived at or after measure_from_s, refused ones not among them
    firsts: float  # of these, with a first token
    within: float  # of these, in time
    ttft_sum_s: float
    ttft_most_s: float
    tpots: float
    tpot_sum_s: float
    kv_preempted: float
    moved: float
    stalls: float
    stall_sum_s: float
    stall_most_s: float
    output_tokens: float
    in_flight: float


class Fleet(Protocol):
    """Slots are numbers below `room`; the caller says which are free. Times never go back."""

    load: NDArray[np.int32]  # by slot: requests sent and not ended
    no_token: NDArray[np.int32]  # of these, without a first token
    routing: Routing | None
    ttft_hist: NDArray[np.int64]
    tpot_hist: NDArray[np.int64]

    def record(self, n: int) -> tuple[Floats, Floats]:
        """Arrays of first-token and end times by number of arrival, filled for the first `n` (NaN: not yet)."""

    def feed(self, requests: Requests) -> None:
        """The next arrivals; those fed before have come."""

    def add(self, slot: int, now_s: float) -> None:
        """A replica begins to take."""

    def close(self, slot: int) -> None:
        """It takes nothing more."""

    def move(self, slot: int, now_s: float, *, planned: bool) -> int:
        """Requests of a closed replica go elsewhere with their tokens so far, or are held. `planned`: the replica is
        busy until each has a token there."""

    def drop(self, slot: int) -> None:
        """A closed replica without requests is gone."""

    def run(self, now_s: float, *, more: bool = False) -> bool:
        """All that happens until `now_s`, and at it. With `more`, there are arrivals to be fed, and it goes no further
        than the last one that has been: False if that is before `now_s`."""

    def bin(self, now_s: float) -> Bin: ...

    def emptied_s(self, slot: int) -> float:
        """When a replica became empty; inf while it is not."""

    def oldest_wait_s(self, now_s: float) -> float:
        """Of the requests without a first token."""

    def totals(self) -> Totals: ...


@functools.cache
def _library() -> Any:
    """None where the library was not built."""
    found = sorted(Path(__file__).parent.glob("_fleet*.so"))
    if not found:
        return None
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError:
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        getattr(lib, name).restype = result
        getattr(lib, name).argtypes = arguments
    return lib


def available() -> bool:
    return _library() is not None


@dataclass(frozen=True, slots=True)
class Setup:
    """What both twins are made from."""

    profile: Profile
    ttft_s: float
    measure_from_s: float = 0.0
    seed: int = 0
    room: int = 1024  # replicas at once, at most
    queue_limit: int = 0  # requests that a replica takes; 0: any number
    output_tokens: float = 200.0  # of a request, as the router takes it to be
    adapters_each: int = 0  # that a replica holds at once; 0: adapters do not matter
    by_deadline: bool = True  # who can have a first token in time goes before who can't

    @property
    def costs(self) -> Costs:
        return Costs.of(self.profile, output_tokens=self.output_tokens)

    def routing(self) -> Routing | None:
        """The router with all it knows. None: requests have no adapters, and `route` comes to the better of two that
        are drawn, which both twins can do faster."""
        if not self.adapters_each:
            return None
        return Routing(
            self.profile, self.costs, adapters_each=self.adapters_each, queue_limit=self.queue_limit,
            rng=random.Random(self.seed),
        )  # fmt: skip


class FastFleet:
    def __init__(self, setup: Setup) -> None:
        self._lib = _library()
        self._failures: list[Exception] = []
        p = setup.profile
        costs = np.array([p.fixed_s, p.prompt_row_s, p.decode_row_s, p.context_token_s])
        limits = np.array(
            [p.max_num_seqs, p.max_batch_tokens, p.kv_tokens, setup.queue_limit, setup.by_deadline], np.int64
        )
        router = np.array([setup.costs.prompt_token_s, setup.costs.running_s, setup.costs.slot_s])
        self._fleet = self._lib.sim_new(
            costs.ctypes.data, limits.ctypes.data, router.ctypes.data,
            setup.ttft_s, setup.measure_from_s, setup.seed, setup.room,
        )  # fmt: skip
        self._checked(self._fleet)
        self._fed: Any = None
        self._left = 0
        self._record: tuple[Floats, Floats] | None = None
        self._out = np.zeros(len(_TOTALS))
        self._map(setup.room)
        self.routing = setup.routing()
        if self.routing is not None:
            self._calls = _CHOOSE(self._choose), _TOLD(self._told)
            self._lib.sim_route(self._fleet, *(ctypes.cast(call, c_void_p) for call in self._calls))

    def _map(self, room: int) -> None:
        at = (c_void_p * 6)()
        self._lib.sim_arrays(self._fleet, at)
        self.load = _view(at[0], room, c_int32)
        self.no_token = _view(at[1], room, c_int32)
        self.ttft_hist = _view(at[4], HIST_BINS, c_int64)
        self.tpot_hist = _view(at[5], HIST_BINS, c_int64)

    def _choose(
        self, ticket: int, now_s: float, prompt: int, project: int, adapter: int, delay_s: Any
    ) -> int:
        assert self.routing is not None
        try:
            slot, delay_s[0] = self.routing.choose(ticket, now_s, prompt, project, adapter)
        except Exception as error:  # it cannot pass through C
            self._failures.append(error)
            return -1
        return slot

    def _told(self, ticket: int, left: int) -> None:
        assert self.routing is not None
        try:
            (self.routing.left if left else self.routing.answered)(ticket)
        except Exception as error:
            self._failures.append(error)

    def _checked(self, given: Any) -> None:
        """Raises what went wrong in C, or in what C called."""
        if self._failures:
            raise self._failures[0]
        if not given:
            raise MemoryError("the simulated fleet does not fit into memory")

    def __del__(self) -> None:
        if getattr(self, "_fleet", None):
            self._lib.sim_free(self._fleet)
            self._fleet = None

    def record(self, n: int) -> tuple[Floats, Floats]:
        self._record = first_s, end_s = np.full(n, math.nan), np.full(n, math.nan)
        self._lib.sim_record(self._fleet, n, first_s.ctypes.data, end_s.ctypes.data)
        return first_s, end_s

    def feed(self, requests: Requests) -> None:
        arrays = (
            np.ascontiguousarray(requests.arrival_s, np.float64),
            np.ascontiguousarray(requests.prompt_tokens, np.int32),
            np.ascontiguousarray(requests.output_tokens, np.int32),
            None if requests.project is None else np.ascontiguousarray(requests.project, np.int32),
            None if requests.adapter is None else np.ascontiguousarray(requests.adapter, np.int32),
        )
        at = (None if a is None else a.ctypes.data for a in arrays)
        if not self._lib.sim_feed(self._fleet, len(arrays[0]), *at):
            raise RuntimeError("arrivals fed before have not come")
        self._fed = arrays

    def add(self, slot: int, now_s: float) -> None:
        if self.routing is not None:
            self.routing.add(slot)
        self._checked(self._lib.sim_add(self._fleet, slot, now_s))

    def close(self, slot: int) -> None:
        if self.routing is not None:
            self.routing.close(slot)
        self._lib.sim_close(self._fleet, slot)

    def move(self, slot: int, now_s: float, *, planned: bool) -> int:
        moved: int = self._lib.sim_move(self._fleet, slot, now_s, planned)
        self._checked(moved >= 0)
        return moved

    def drop(self, slot: int) -> None:
        if self.routing is not None:
            self.routing.drop(slot)
        self._lib.sim_drop(self._fleet, slot)

    def run(self, now_s: float, *, more: bool = False) -> bool:
        reached = self._lib.sim_run(self._fleet, now_s, more)
        self._checked(reached >= 0)
        return bool(reached)

    def bin(self, now_s: float) -> Bin:
        self._lib.sim_bin(self._fleet, now_s, self._out.ctypes.data)
        came, prompt, output, in_flight_s, late, held, oldest_s, in_flight = self._out.tolist()[:8]
        return Bin(came, prompt, output, in_flight_s, late, int(held), oldest_s, int(in_flight))

    def emptied_s(self, slot: int) -> float:
        at_s: float = self._lib.sim_emptied_s(self._fleet, slot)
        return at_s

    def oldest_wait_s(self, now_s: float) -> float:
        wait_s: float = self._lib.sim_oldest_wait_s(self._fleet, now_s)
        return wait_s

    def totals(self) -> Totals:
        self._lib.sim_totals(self._fleet, self._out.ctypes.data)
        return Totals(*self._out.tolist())


def _view(at: int | None, n: int, kind: Any) -> NDArray[Any]:
    return np.ctypeslib.as_array(ctypes.cast(at or 0, ctypes.POINTER(kind)), (n,))
