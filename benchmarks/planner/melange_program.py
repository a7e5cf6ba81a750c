"""Mélange's problem and program, restated from its paper (arXiv 2404.14527, section 5.4), with random cases of it.

Requests of a size bucket come in equal slices; each slice goes to one type of GPU, whole, and of each type whole GPUs are
rented. A GPU that serves at most `tput` requests a second of a bucket is busy for 1 / tput with each.

B[i,j]  slice i goes to type j; 0 or 1              N[j]  GPUs of type j; whole
minimize sum_j usd[j] N[j]
subject to  sum_j B[i,j] = 1                        each slice goes somewhere
            sum_i rate[i] / tput[i,j] B[i,j] <= N[j]    within what GPUs can do
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stoa.planner.check import check
from stoa.planner.problem import (
    Bucket,
    Fit,
    Group,
    MachineType,
    Offer,
    Period,
    Place,
    Problem,
    Service,
)
from stoa.programs import NoOptimum, Program

Floats = NDArray[np.float64]
Kind = Literal["example", "table", "gpus"]
KINDS: tuple[Kind, ...] = ("example", "table", "gpus")
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SLICES = (1, 2, 4, 8)
# USD an hour on demand, requests a second of 500 + 125 tokens under a target of some 100 ms a token (rough), GiB
GPUS = {
    "T4": (0.53, 0.7, 16), "L4": (0.70, 1.6, 24), "A10G": (1.01, 2.4, 24), "L40S": (1.86, 4.6, 48),
    "A100-80GB": (3.67, 9.5, 80), "H100": (7.516, 18.0, 80),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """`tputs` by type [inputs, outputs]: requests a second, 0 where a type cannot keep the targets. `shares` [inputs,
    outputs] of the requests, `rate` of all of them a second."""

    usd: Mapping[str, float]
    tputs: Mapping[str, Floats]
    shares: Floats
    rate: float
    slices: int


@dataclass(frozen=True, slots=True)
class Answer:
    """USD an hour, and GPUs of each type. `proved`: nothing is cheaper."""

    usd: float
    counts: Mapping[str, int]
    proved: bool


def draw_case(seed: int, *, most_buckets: int = 30) -> Case:
    """Kinds, rates and slices take turns, so that any run of seeds has all of them; the rest is drawn. Some type serves each
    bucket."""
    rng = np.random.default_rng([2404, 14527, seed])
    kind = KINDS[seed % len(KINDS)]
    rate = RATES[(seed // 3) % len(RATES)]
    slices = SLICES[(seed // 24 + seed) % len(SLICES)]
    if kind == "example":
        usd, tputs = _like_the_example(rng)
    else:
        inputs = int(rng.integers(2, 7))
        outputs = int(rng.integers(1, min(6, most_buckets // inputs) + 1))
        usd, tputs = (_table if kind == "table" else _gpus)(rng, inputs, outputs)
    some = next(iter(tputs.values())).shape
    return Case(usd, tputs, _shares(rng, some, coarse=kind == "example"), rate, slices)


def _like_the_example(rng: np.random.Generator) -> tuple[dict[str, float], dict[str, Floats]]:
    """Two types, two by two buckets, throughputs in small whole numbers, as in the published example; many sums are even."""
    usd = {
        "A10G": round(float(rng.uniform(0.5, 1.5)), 2),
        "A100-80GB": round(float(rng.uniform(2.5, 4.5)), 2),
    }
    small = rng.choice([0, 1, 2, 2, 4, 5], (2, 2)).astype(np.float64)
    return usd, {"A10G": small, "A100-80GB": rng.choice([10, 16, 20, 20, 40], (2, 2)).astype(np.float64)}


def _table(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[dict[str, float], dict[str, Floats]]:
    """Anything: throughputs drawn for each cell, a tenth of them 0; the last type serves all."""
    types = int(rng.integers(2, 6))
    speed = np.sort(rng.uniform(1, 20, types))
    tputs = {f"type-{j}": speed[j] * rng.uniform(0.3, 3.0, (inputs, outputs)) for j in range(types)}
    for name in list(tputs)[:-1]:
        tputs[name][rng.random((inputs, outputs)) < 0.1] = 0.0
    usd = {f"type-{j}": float(0.3 * speed[j] ** 0.9 * rng.uniform(0.6, 1.6)) for j in range(types)}
    return usd, tputs


def _gpus(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[dict[str, float], dict[str, Floats]]:
    """Real GPUs at perturbed prices. Throughput falls with size, on small GPUs faster; large sizes they don't serve."""
    prompt = 25.0 * 2 ** np.arange(1, inputs + 1)[:, None] * float(rng.uniform(1, 6))
    output = 25.0 * 2 ** np.arange(outputs)[None, :] * float(rng.uniform(1, 4))
    size = (prompt + 4 * output) / 1000
    chosen = sorted(rng.choice(len(GPUS) - 1, int(rng.integers(1, len(GPUS))), replace=False).tolist())
    names = [list(GPUS)[i] for i in [*chosen, len(GPUS) - 1]]
    usd, tputs = {}, {}
    for name in names:
        price, speed, memory = GPUS[name]
        fall = 0.8 + 6 / memory * float(rng.uniform(0.5, 1.5))
        tputs[name] = speed * size**-fall * rng.uniform(0.85, 1.15, size.shape)
        if name != "H100":
            tputs[name][size > memory / 2.5] = 0.0
        usd[name] = price * float(rng.uniform(0.75, 1.25))
    return usd, tputs


def _shares(rng: np.random.Generator, shape: tuple[int, ...], *, coarse: bool) -> Floats:
    if coarse:  # tenths, as in the example
        return np.asarray(
            rng.multinomial(10, np.full(math.prod(shape), 1 / math.prod(shape))).reshape(shape) / 10
        )
    return rng.dirichlet(np.full(math.prod(shape), 0.6)).reshape(shape)


def problem_of(case: Case) -> Problem:
    """The same as a `Problem`: one cloud, on demand, one hour."""
    cells = list(np.ndindex(case.shares.shape))
    buckets = tuple(
        Bucket("all", "all", float(2**i), float(2**j), (float(case.shares[i, j] * case.rate),))
        for i, j in cells
    )
    fits = tuple(
        Fit(
            name,
            "m",
            tuple(1 / float(tputs[cell]) if tputs[cell] > 0 else math.inf for cell in cells),
            (0.0,) * len(cells),
        )
        for name, tputs in case.tputs.items()
    )
    return check(
        Problem(
            (Period("hour", 1.0),),
            (Place("cloud"),),
            tuple(MachineType(name, name, 1, 1.0) for name in case.usd),
            tuple(Offer("cloud", name, "on_demand", usd) for name, usd in case.usd.items()),
            fits,
            (Service("all", ("m",), 1.0),),
            (Group("all", frozenset({"cloud"})),),
            buckets,
        )
    )


def sliced(case: Case) -> tuple[Floats, Floats]:
    """Requests a second of each slice [S], and how much of a GPU it takes [S, J], infinite where it cannot go."""
    rates = np.repeat(case.shares.ravel() * case.rate / case.slices, case.slices)
    tputs = np.stack([np.repeat(t.ravel(), case.slices) for t in case.tputs.values()], axis=1)
    busy = np.full(tputs.shape, np.inf)
    np.divide(rates[:, None], tputs, out=busy, where=tputs > 0)
    return rates, busy


def cheapest(case: Case, time_limit_s: float = 60.0) -> Answer | None:
    """Their program, solved by HiGHS; None if some slice can go nowhere, or nothing was found in time."""
    _, busy = sliced(case)
    able = np.isfinite(busy)
    program = Program()
    goes = program.variables(busy.shape, high=able.astype(np.float64))
    count = program.variables((busy.shape[1],), cost=np.array(list(case.usd.values())))
    everywhere = program.row((len(busy),), low=1.0, high=1.0)
    program.add((goes, 1.0), into=np.broadcast_to(everywhere[:, None], goes.shape))
    room = program.row((busy.shape[1],), high=0.0)
    program.add((goes, np.where(able, busy, 0.0)), into=np.broadcast_to(room, goes.shape))
    program.add((count, -1.0), into=room)
    try:
        found = program.solve(
            integer=np.concatenate([goes.ravel(), count]), gap=0.0, time_limit_s=time_limit_s
        )
    except NoOptimum:
        return None
    if found.cost == np.inf:
        return None
    counts = np.rint(found.x[count]).astype(int).tolist()
    return Answer(found.cost, dict(zip(case.usd, counts, strict=True)), found.bound >= found.cost - 1e-6)


def lacking(case: Case, counts: Mapping[str, int]) -> float:
    """How much of a GPU each type lacks at least if these GPUs serve the case, slices parted as one likes; infinite if they
    cannot. Above 0, an answer of these counts is none."""
    _, busy = sliced(case)
    able = np.isfinite(busy)
    program = Program()
    goes = program.variables(busy.shape, high=able.astype(np.float64))
    lack = program.variables((1,), cost=1.0)
    everywhere = program.row((len(busy),), low=1.0, high=1.0)
    program.add((goes, 1.0), into=np.broadcast_to(everywhere[:, None], goes.shape))
    room = program.row((busy.shape[1],), high=np.array([counts[name] for name in case.usd], np.float64))
    program.add((goes, np.where(able, busy, 0.0)), into=np.broadcast_to(room, goes.shape))
    program.add((np.broadcast_to(lack, room.shape), -1.0), into=room)
    try:
        return program.solve(methods=(("simplex", "on"),)).cost
    except NoOptimum:
        return math.inf
