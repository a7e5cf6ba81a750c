"""One token a row: the largest logit, or a draw by inverse CDF from what temperature, min-p, top-k and top-p leave.

Filters become one least logit: what lies below it has no probability. The least logits of top-k and top-p are found by
bisection over the bits of floats, whose order as integers is that of the floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import inputs_ready
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.interface import DrawRow

_PIECE = 4096  # logits among which one program seeks the largest
_TILE = 8192  # logits that a drawing program reads at once
_NUMBERS = tl.constexpr(5)  # of each row, see `numbers`


def draw(launch: Launch, logits: Tensor, rows: Sequence[DrawRow]) -> list[int]:
    """As `interface.Kernels.draw`; waits for the device."""
    pinned = logits.device.type == "cuda"
    values = torch.tensor([numbers(row) for row in rows], dtype=torch.float64, pin_memory=pinned)
    tokens: list[int] = draw_tokens(launch, logits, values.to(logits.device, non_blocking=True)).tolist()
    return tokens


def numbers(row: DrawRow) -> tuple[float, ...]:
    """What the kernel reads: bits of exponent for each unit of logit (0: take the largest), how far below the largest
    logit min-p cuts, top_k, top_p, uniform."""
    if row.temperature <= 0:
        return 0.0, 0.0, 0.0, 1.0, 0.0
    floor = row.temperature * math.log(row.min_p) if row.min_p > 0 else -math.inf
    rate = min(1e30, math.log2(math.e) / row.temperature)
    return rate, min(0.0, floor), float(max(0, row.top_k)), row.top_p, row.uniform


def draw_tokens(launch: Launch, logits: Tensor, values: Tensor) -> Tensor:
    """logits: [n, V] fp32, values: fp64 [n, 5], see `numbers` -> int64 [n]."""
    n, v = logits.shape
    piece, tile = (min(most, triton.next_power_of_2(v)) for most in (_PIECE, _TILE))
    pieces = triton.cdiv(v, piece)
    tops = torch.empty(n, pieces, dtype=torch.float32, device=logits.device)
    places = torch.empty(n, pieces, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(n, dtype=torch.int64, device=logits.device)
    launch(
        _largest, (n, pieces), logits, tops, places, v,
        warps=max(1, min(8, piece // 512)), stages=1, PIECE=piece,
    )  # fmt: skip
    launch(
        _draw, (n,), logits, values, tops, places, tokens, v, pieces,
        warps=max(1, min(16, tile // 512)), stages=1, TILE=tile, PIECES=triton.next_power_of_2(pieces),
    )  # fmt: skip
    return tokens


@triton.jit
def _read(row, at, v):
    """Logits; what is not a number, or is behind the last one, cannot be drawn."""
    x = tl.load(row + at, mask=at < v, other=float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def _first_top(x, at):
    """The largest of x, and the least of `at` where it is found."""
    top = tl.max(x, 0)
    return top, tl.min(tl.where(x == top, at, 0x7FFFFFFF), 0)


@triton.jit
def _largest(logits, tops, places, v, PIECE: tl.constexpr, EARLY: tl.constexpr):
    """Grid: rows, pieces of a row."""
    inputs_ready(EARLY)
    n, piece = tl.program_id(0), tl.program_id(1)
    at = piece * PIECE + tl.arange(0, PIECE)
    top, place = _first_top(_read(logits + n.to(tl.int64) * v, at, v), at)
    slot = n * tl.num_programs(1) + piece
    tl.store(tops + slot, top)
    tl.store(places + slot, place)


@triton.jit
def _flip(bits):
    """int32 bits of a float <-> an integer of the same order; its own inverse."""
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _key(x):
    return _flip(tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True))  # -0 equals 0


@triton.jit
def _weight(x, top, least, rate):
    """exp((x - top) / temperature) of logits from `least` on, fp32."""
    weight = tl.where(x == top, 1.0, tl.exp2((x - top) * rate))
    return tl.where(x >= least, weight, 0.0)


@triton.jit
def _from(row, v, top, least, rate, TILE: tl.constexpr):
    """How many logits are `least` or more, and their weight in fp64."""
    count = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.float32)
    for start in range(0, v, TILE):
        at = start + tl.arange(0, TILE)
        x = _read(row, at, v)
        count += ((x >= least) & (at < v)).to(tl.int32)
        mass += _weight(x, top, least, rate)
    return tl.sum(count, 0), tl.sum(mass.to(tl.float64), 0)


@triton.jit
def _least(row, v, top, least, rate, wanted, above, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The largest logit such that those from it on come to `wanted` or more (their number, or BY_MASS their weight).
    `above`: how many are `least` or more, which do."""
    low, high = _key(least).to(tl.int64), _key(top).to(tl.int64)
    beyond = above * 0  # logits above `high`
    while (low < high) & (above - beyond > 1):
        middle = low + (high - low + 1) // 2
        count, mass = _from(row, v, top, _flip(middle.to(tl.int32)).to(tl.float32, bitcast=True), rate, TILE)
        amount = count.to(tl.float64)
        if BY_MASS:
            amount = mass
        enough = amount >= wanted
        low = tl.where(enough, middle, low)
        above = tl.where(enough, count, above)
        high = tl.where(enough, high, middle - 1)
        beyond = tl.where(enough, beyond, count)
    return _flip(low.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _sum(row, v, top, least, rate, TILE: tl.constexpr):
    mass = tl.zeros([], tl.float64)
    for start in range(0, v, TILE):
        x = _read(row, start + tl.arange(0, TILE), v)
        mass += tl.sum(_weight(x, top, least, rate).to(tl.float64), 0)
    return mass


@triton.jit
def _pick(row, v, top, least, rate, goal, TILE: tl.constexpr):
    """The first token whose weight, with that of all before it, exceeds `goal`; failing that the last with any."""
    chosen, before, found = v * 0, goal * 0, v * 0
    for start in range(0, v, TILE):
        if found == 0:
            at = start + tl.arange(0, TILE)
            weight = _weight(_read(row, at, v), top, least, rate).to(tl.float64)
            chosen = tl.maximum(chosen, tl.max(tl.where(weight > 0, at, 0), 0))
            after = before + tl.sum(weight, 0)
            if after > goal:
                exceeds = (before + tl.cumsum(weight, 0) > goal) & (weight > 0)
                chosen = tl.minimum(chosen, tl.min(tl.where(exceeds, at, 0x7FFFFFFF), 0))
                found = found + 1
            before = after
    return chosen


@triton.jit(do_not_specialize=["pieces"])
def _draw(
    logits,
    values,
    tops,
    places,
    tokens,
    v,
    pieces,
    TILE: tl.constexpr,
    PIECES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: rows."""
    inputs_ready(EARLY)
    n = tl.program_id(0)
    i = tl.arange(0, PIECES)
    x = tl.load(tops + n * pieces + i, mask=i < pieces, other=float("-inf"))
    top, best = _first_top(x, tl.load(places + n * pieces + i, mask=i < pieces, other=0x7FFFFFFF))
    rate = tl.load(values + n * _NUMBERS).to(tl.float32)
    if (rate == 0) | (top == float("-inf")):
        tl.store(tokens + n, best.to(tl.int64))
        return
    row = logits + n.to(tl.int64) * v
    floor = tl.load(values + n * _NUMBERS + 1)
    least = tl.where(floor == float("-inf"), floor, top.to(tl.float64) + floor).to(tl.float32)
    top_k = tl.load(values + n * _NUMBERS + 2)
    top_p = tl.load(values + n * _NUMBERS + 3)
    uniform = tl.load(values + n * _NUMBERS + 4)
    if (top_k > 0) & (top_k < v):
        count, mass = _from(row, v, top, least, rate, TILE)
        if count > top_k:
            least = _least(row, v, top, least, rate, top_k, count, False, TILE)
    if top_p < 1:
        count, mass = _from(row, v, top, least, rate, TILE)
        least = _least(row, v, top, least, rate, top_p * mass, count, True, TILE)
    goal = uniform * _sum(row, v, top, least, rate, TILE)
    tl.store(tokens + n, _pick(row, v, top, least, rate, goal, TILE).to(tl.int64))
