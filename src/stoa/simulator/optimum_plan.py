"""A good plan in whole replicas for one who knows all requests in advance: what a fleet can be made to follow.

The bound of `optimum.py` lets a fleet keep a few late requests waiting while it serves others. Fleets serve in order of
arrival, nearly: once work is behind, all that arrives is late until it is caught up. With that, and without spot
machines, dynamic programming over (ready replicas n, work q that has arrived and is not done) finds

    V[t](m, q) = min over n of  startup max(0, n - m) + D n + price late(t, n, q) + V[t+1](n, q'),

q' being what is left after the bin's arrivals and D n seconds of work, followed in `parts` of a bin; late are the arrivals
of parts that end and begin with more undone than `due` allows. `price` is replica-seconds per late request: the
lowest one with which few enough are late is searched for. Fluid as the bound is, whole as it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoa.fleet.policies.facts import Slo
from stoa.fleet.policies.profile import Profile
from stoa.simulator.optimum_work import Floats, Patience, curves
from stoa.simulator.traces import Requests

Choices = NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Plan:
    replicas: list[int]  # by bins of `bin_s`
    bin_s: float
    replica_s: float  # paid, startups included
    late: float  # requests, in the model


@dataclass(frozen=True, slots=True)
class Course:
    """come, allowed, arrivals: [parts of bins], work that arrives, work that may be undone at the part's end with nobody
    late, and requests whose first token is due. `undone` is kept in multiples of `grain_s`, `grains` of them."""

    come: Floats
    allowed: Floats
    arrivals: Floats
    part_s: float
    parts: int
    startup_s: float
    most: int  # replicas
    grain_s: float
    grains: int

    @property
    def bins(self) -> int:
        return len(self.come) // self.parts


def course(
    requests: Requests,
    profile: Profile,
    slo: Slo,
    *,
    until_s: float,
    startup_s: float,
    most: int,
    bin_s: float = 10.0,
    parts: int = 5,
    token_s: float = 0.15,
    grains: int = 1000,
) -> Course:
    """`token_s`: between two tokens of an answer. What may be undone is resolved up to its 99.9 % quantile."""
    n, part_s = int(until_s / bin_s + 1e-9) * parts, bin_s / parts
    work = curves(
        requests, profile, slo, bins=n, bin_s=part_s, patience=Patience(stall_s=0.0, token_s=token_s)
    )
    allowed = work.arrived - work.due
    due = np.ceil((requests.arrival_s + slo.ttft_s) / part_s) - 1
    arrivals = np.bincount(np.minimum(np.maximum(due, 0), n).astype(np.int64), minlength=n + 1)[:n]
    room = 1.5 * float(np.quantile(allowed, 0.999)) + part_s
    come = np.diff(work.arrived, prepend=0.0)
    return Course(
        come, allowed, arrivals.astype(np.float64), part_s, parts, startup_s, most, room / grains, grains
    )


def in_order_plan(course: Course, *, late_allowed: float, tries: int = 6) -> Plan:
    """The cheapest plan found whose late requests are few enough; if none is, the one with the fewest."""
    low, high, price = 0.0, 2.0, 0.25
    found: list[Plan] = []
    for _ in range(tries):
        found.append(follow(course, choose(course, price)))
        low, high = (low, price) if found[-1].late <= late_allowed else (price, high)
        price = (low + high) / 2
    return min(found, key=lambda plan: (max(0.0, plan.late - late_allowed), plan.replica_s))


def choose(course: Course, price: float) -> Choices:
    """The best number of ready replicas by (bin, number before, grains of work undone)."""
    counts = np.arange(course.most + 1)[:, None]
    grid = np.arange(course.grains) * course.grain_s
    bin_s = course.part_s * course.parts
    after = np.zeros((course.most + 1, course.grains))
    small = np.int8 if course.most < 128 else np.int16
    best = np.zeros((course.bins, course.most + 1, course.grains), small)
    for t in range(course.bins - 1, -1, -1):
        left, late = _bin(course, t, np.broadcast_to(grid, after.shape), counts)
        place = np.minimum((left / course.grain_s + 0.5).astype(np.int32), course.grains - 1)
        value = bin_s * counts + price * late + np.take_along_axis(after, place, 1)
        if t * bin_s < course.startup_s:
            value[1:] = np.inf
        after, best[t] = _started(value, course.startup_s)
    return best


def _bin(course: Course, t: int, undone: Floats, counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(work undone at the bin's end, late requests) from each state at its beginning."""
    first = t * course.parts
    late = np.zeros(np.broadcast_shapes(undone.shape, counts.shape))
    behind = undone > (course.allowed[first - 1] if first else 0.0)
    for k in range(first, first + course.parts):
        undone = np.maximum(0.0, undone + course.come[k] - counts * course.part_s)
        still = undone > course.allowed[k]
        late = late + course.arrivals[k] * (behind & still)
        behind = still
    return undone, late


def _started(value: Floats, startup_s: float) -> tuple[Floats, NDArray[np.int64]]:
    """(least value, its number of replicas) by the number before: fewer are free, more pay their startup."""
    numbers = np.broadcast_to(np.arange(len(value))[:, None], value.shape)
    fewer, which_fewer = _running_least(value, numbers)
    more, which_more = _running_least((value + startup_s * numbers)[::-1], numbers[::-1])
    more, which_more = more[::-1] - startup_s * numbers, which_more[::-1]
    return np.minimum(fewer, more), np.where(fewer <= more, which_fewer, which_more)


def _running_least(value: Floats, numbers: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    least = np.minimum.accumulate(value, axis=0)
    fresh = np.ones(value.shape, bool)
    fresh[1:] = value[1:] < least[:-1]
    places = np.maximum.accumulate(np.where(fresh, np.arange(len(value))[:, None], 0), axis=0)
    return least, np.take_along_axis(numbers, places, 0)


def follow(course: Course, best: Choices) -> Plan:
    """What the choices lead to from nothing, with work undone kept exactly."""
    bin_s = course.part_s * course.parts
    undone, before, paid_s, late = np.zeros((1, 1)), 0, 0.0, 0.0
    replicas: list[int] = []
    for t in range(course.bins):
        place = min(int(undone[0, 0] / course.grain_s + 0.5), course.grains - 1)
        n = int(best[t, before, place])
        paid_s += bin_s * n + course.startup_s * max(0, n - before)
        undone, more = _bin(course, t, undone, np.array([[n]]))
        late += float(more[0, 0])
        replicas.append(n)
        before = n
    return Plan(replicas, bin_s, paid_s, late)
