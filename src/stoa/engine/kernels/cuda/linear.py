"""y = x Wᵀ + bias: weights stream past a few rows in decode, tiles of many rows past each other in prefill.

A program computes a tile of yᵀ: weights are the left operand of the tensor cores' instructions, whose 64 rows are thus
always filled, and rows of x are the right one, of which as few as 16 may stand side by side. Quantized weights go from
registers into the instruction.

One order of summation for each shape of weight: K is walked from its beginning in steps of k16 instructions, cut into
`k_splits` ranges which depend on the shape alone, each summed from zero; the sums are added in order. Ranges are walked
by programs of their own where rows are few, else by one program after each other: the same bits. A tile's size, warps
and stages change no bits either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import dot, inputs_ready, rounded
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.quantized import (
    WORDS,
    block_inputs,
    blocks,
    load_rows,
    quantized_rows,
    scale_rows,
    sum_int4,
    sum_int8,
)
from stoa.engine.kernels.quantize import BITS

_PIECE = 1 << 24  # weights that are packed at once
_ENOUGH_PROGRAMS = 256  # of 64 columns each: two for each multiprocessor of a large GPU
_MOST_SPLITS = 8
_SHORTEST_SPLIT = 512  # inputs


@dataclass(frozen=True)
class CudaLinear:
    """Satisfies `interface.Linear`."""

    weight: Tensor  # [sum(splits), K] in the compute dtype; quantized: see quantized.py
    scale: Tensor | None  # [groups, sum(splits)] in the compute dtype, of a quantized weight
    bits: int
    bias: Tensor | None  # [sum(splits)] fp32
    k: int
    splits: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def n(self) -> int:
        return self.weight.shape[0]

    @property
    def steps(self) -> int:
        """Turns of the loop over K, all splits together."""
        return -(-self.k // step_inputs(self.bits, self.weight.dtype))

    @property
    def steps_per_split(self) -> int:
        return -(-self.steps // _wanted_splits(self.n, self.k))

    @property
    def k_splits(self) -> int:
        """Ranges that K is summed in, none of them empty."""
        return -(-self.steps // self.steps_per_split)


def step_inputs(bits: int, dtype: torch.dtype) -> int:
    """Inputs that one turn of the loop over K takes."""
    if bits in BITS:
        return block_inputs(bits)
    return 16 if dtype == torch.float32 else 64


def _wanted_splits(n: int, k: int) -> int:
    splits = 1
    while (
        -(-n // 64) * splits < _ENOUGH_PROGRAMS
        and splits < _MOST_SPLITS
        and k >= 2 * splits * _SHORTEST_SPLIT
    ):
        splits *= 2
    return splits


def pack_linear(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    bits: int,
    dtype: torch.dtype,
    device: torch.device,
) -> CudaLinear:
    """weights: [n_i, K] each, any float dtype, anywhere. Packed piece by piece: a large weight is never there twice."""
    splits = tuple(int(w.shape[0]) for w in weights)
    n, k = sum(splits), int(weights[0].shape[1])
    scale = None
    if bits in BITS:
        packed = torch.empty(n, blocks(k, bits) * WORDS, dtype=torch.int16, device=device)
        scale = torch.empty(scale_rows(k, bits), n, dtype=dtype, device=device)
    else:
        bits, packed = 16, torch.empty(n, k, dtype=dtype, device=device)
    at = 0
    for weight in weights:
        for piece in weight.split(max(_PIECE // k, 1)):
            rows = slice(at, at + len(piece))
            if scale is None:
                packed[rows] = piece.to(device)
            else:
                packed[rows], scales = quantized_rows(piece.to(device), bits)
                scale[:, rows] = scales.T
            at += len(piece)
    bias = None
    if any(b is not None for b in biases):
        parts = [
            torch.zeros(m) if b is None else b.float().cpu() for m, b in zip(splits, biases, strict=True)
        ]
        bias = torch.cat(parts).to(device)
    return CudaLinear(packed, scale, bits, bias, k, splits)


# -- how the work is cut


@dataclass(frozen=True)
class Tile:
    """None of these changes a bit of the result."""

    columns: int  # of y: at least 64, so that it is one kind of tensor core instruction
    rows: int
    warps: int
    stages: int
    inside: bool  # one program walks all splits of K


ROW_CLASSES = (16, 32, 64, 128, 256, 1024, 4096)  # steps of so many rows share a tile
_MOST_ROWS_ACROSS = 256  # beyond, partial sums would cost more than what splits bring


def row_class(rows: int) -> int:
    """The smallest class that holds `rows`, or the largest."""
    return next((c for c in ROW_CLASSES if rows <= c), ROW_CLASSES[-1])


def candidates(w: CudaLinear, rows: int) -> list[Tile]:
    """Tiles worth a measurement for `rows` rows, the default first."""
    rows = row_class(rows)
    exact = (w.weight if w.scale is None else w.scale).dtype == torch.float32
    tiles = _FP32 if exact else _few(rows) if rows <= 128 else _MANY
    return [Tile(*tile, inside) for tile in tiles if exact or _fits(w, *tile) for inside in _ways(w, rows)]


def default(w: CudaLinear, rows: int) -> Tile:
    return candidates(w, rows)[0]


# (columns, rows, warps, stages). Of fp32 one alone: the interpreter's products depend on the shape of a tile.
_FP32 = [(64, 64, 8, 2)]
_MANY = [
    (128, 128, 8, 3), (128, 64, 8, 3), (128, 128, 8, 4), (128, 64, 4, 3), (64, 128, 4, 4),
    (128, 256, 8, 3), (256, 128, 8, 3),
]  # fmt: skip


def _few(rows: int) -> list[tuple[int, int, int, int]]:
    """Where the weight's bytes are what takes time: deep pipelines."""
    height = min(rows, 64)
    tiles = [
        (64, height, 4, 4),
        (64, height, 4, 6),
        (128, height, 4, 4),
        (128, height, 8, 4),
        (128, height, 8, 6),
    ]
    return tiles if rows == height else [*tiles[:4], (64, rows, 4, 4), (128, rows, 8, 4)]


def _fits(w: CudaLinear, columns: int, rows: int, warps: int, stages: int) -> bool:
    """Do sums leave room for the rest in registers? Of quantized weights there are two, of splits one more."""
    sums = columns * rows // (32 * warps)
    return sums <= {16: 128 if w.k_splits == 1 else 64, 8: 64, 4: 32}[w.bits]


def _ways(w: CudaLinear, rows: int) -> tuple[bool, ...]:
    """Values of `inside` that make sense."""
    if w.k_splits == 1 or rows > _MOST_ROWS_ACROSS:
        return (True,)
    return (False,) if rows <= 64 else (False, True)


@dataclass(frozen=True)
class Workspace:
    """What programs that share a tile of y hand over. One launch at a time; counters are zero between launches."""

    partials: Tensor  # fp32
    counters: Tensor  # int32

    @classmethod
    def of(cls, linears: Sequence[CudaLinear], rows: int, device: torch.device) -> Workspace:
        """Enough for any of `linears` and its candidates, with up to `rows` rows."""
        rows = min(row_class(rows), _MOST_ROWS_ACROSS)
        split = [w for w in linears if w.k_splits > 1]
        values = max((w.k_splits * w.n * rows for w in split), default=1)
        tiles = max((-(-w.n // 64) * -(-rows // 16) for w in split), default=1)
        zeros = torch.zeros(tiles, dtype=torch.int32, device=device)
        return cls(torch.empty(values, dtype=torch.float32, device=device), zeros)


def linear(
    launch: Launch,
    x: Tensor,
    w: CudaLinear,
    out: Tensor,
    *,
    tile: Tile,
    delta: Tensor | None = None,
    has_delta: Tensor | None = None,
    accumulate: bool = False,
    workspace: Workspace | None = None,
) -> None:
    """out[T, N] (=, or += with accumulate) x[T, K] Wᵀ + bias + delta. x in the compute dtype, out in it or fp32.

    delta: fp32 [>= T, N], of which rows with has_delta (int32 [>= T]) other than 0 are read. `workspace` is needed by
    tiles that are not `inside`."""
    rows, n = out.shape
    across = w.k_splits > 1 and not tile.inside
    tiles = -(-rows // tile.rows) * -(-n // tile.columns)
    if across:
        assert workspace is not None, "splits of K meet in a workspace"
        assert workspace.partials.numel() >= w.k_splits * rows * n, "too many rows for the workspace"
        assert workspace.counters.numel() >= tiles, "too many tiles for the workspace"
    launch(
        linear_kernel,
        (tiles, w.k_splits if across else 1),
        x, w.weight, out if w.scale is None else w.scale, out if w.bias is None else w.bias,
        out if delta is None else delta, out if has_delta is None else has_delta, out,
        workspace.partials if across and workspace else out, workspace.counters if across and workspace else out,
        rows, n, w.k, w.steps, w.steps_per_split,
        warps=tile.warps, stages=tile.stages,
        BITS=w.bits, BN=tile.columns, BT=tile.rows, STEP=step_inputs(w.bits, w.weight.dtype), SPLITS=w.k_splits,
        ACROSS=across, EVEN=w.k % step_inputs(w.bits, w.weight.dtype) == 0,
        BIAS=w.bias is not None, DELTA=delta is not None, ACCUMULATE=accumulate,
        # weights that nobody reads again leave the cache first
        HINT="evict_first" if rows <= tile.rows else "evict_normal",
    )  # fmt: skip


# -- the kernel


@triton.jit
def _place(program, row_tiles, column_tiles, GROUP: tl.constexpr):
    """-> (row tile, column tile). Neighbours in time share columns, and eight row tiles take turns, so that both the
    weights and the rows which run at one time stay in the L2 cache."""
    in_group = GROUP * column_tiles
    first = program // in_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = program % in_group
    return first + within % height, within // height


@triton.jit
def _sum_plain(
    x, w, x_at, w_at, present, K, first, last,
    BN: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    """Steps first:last of K -> fp32 [BN, BT]."""
    acc = tl.zeros((BN, BT), dtype=tl.float32)
    for step in range(first, last):
        k = step * STEP
        rows = load_rows(x, x_at, present, k, K, STEP, EVEN)
        if EVEN:
            columns = tl.load(w + k + w_at, eviction_policy=HINT)
        else:
            inside = k + tl.arange(0, STEP) < K
            columns = tl.load(w + k + w_at, mask=inside[None, :], other=0.0)
        acc = dot(columns, tl.trans(rows), acc)
    return acc


@triton.jit
def _sum(
    x, w, scale, row, column, T, N, K, first, last,
    BITS: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
    HINT: tl.constexpr,
):  # fmt: skip
    """Steps first:last of K for BT rows from `row` and BN columns from `column` -> fp32 [BN, BT]."""
    WIDTH: tl.constexpr = STEP if BITS == 16 else 32  # elements of x and of w that are loaded side by side
    t = tl.arange(0, BT)
    n = tl.minimum(tl.arange(0, BN), N - 1 - column)  # columns beyond the last are computed as the last
    k = tl.arange(0, WIDTH)
    present = row + t < T
    x_at = t[:, None] * K + k[None, :]
    x += row.to(tl.int64) * K
    # no early return: what follows one would be compiled nevertheless
    if BITS == 16:
        w_at = n[:, None] * K + k[None, :]
        w += column.to(tl.int64) * K
        acc = _sum_plain(x, w, x_at, w_at, present, K, first, last, BN, BT, STEP, EVEN, HINT)
    else:
        stride = tl.cdiv(K, STEP) * 32  # words
        w_at = n[:, None] * stride + k[None, :]
        w += column.to(tl.int64) * stride
        n += column
        if BITS == 8:
            acc = sum_int8(x, w, scale, x_at, w_at, n, present, N, K, first, last, BN, BT, EVEN, HINT)
        else:
            acc = sum_int4(x, w, scale, x_at, w_at, n, present, N, K, first, last, BN, BT, EVEN, HINT)
    return acc


@triton.jit
def _write(
    y, bias, delta, has_delta, out, row, column, T, N,
    BN: tl.constexpr, BT: tl.constexpr,
    BIAS: tl.constexpr, DELTA: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """y: fp32 [BT, BN], the product."""
    t = row + tl.arange(0, BT)
    n = column + tl.arange(0, BN)
    at = t.to(tl.int64)[:, None] * N + n[None, :]
    mask = (t < T)[:, None] & (n < N)[None, :]
    if BIAS:
        y += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if DELTA:
        has = tl.load(has_delta + t, mask=t < T, other=0) != 0
        y += tl.load(delta + at, mask=mask & has[:, None], other=0.0)
    if ACCUMULATE:
        y += tl.load(out + at, mask=mask, other=0.0)
    tl.store(out + at, rounded(y, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "steps", "steps_per_split"])
def linear_kernel(
    x, w, scale, bias, delta, has_delta, out, partials, counters, T, N, K, steps, steps_per_split,
    BITS: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    ACROSS: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, DELTA: tl.constexpr,
    ACCUMULATE: tl.constexpr, HINT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of y, SPLITS if ACROSS)."""
    inputs_ready(EARLY)
    tile = tl.program_id(0)
    row_tile, column_tile = _place(tile, tl.cdiv(T, BT), tl.cdiv(N, BN), 8)
    row, column = row_tile * BT, column_tile * BN
    if not ACROSS:
        if SPLITS == 1:
            y = _sum(x, w, scale, row, column, T, N, K, 0, steps, BITS, BN, BT, STEP, EVEN, HINT)
        else:
            y = tl.zeros((BN, BT), dtype=tl.float32)
            for split in range(SPLITS):
                first = split * steps_per_split
                last = tl.minimum(first + steps_per_split, steps)
                y += _sum(x, w, scale, row, column, T, N, K, first, last, BITS, BN, BT, STEP, EVEN, HINT)
        _write(tl.trans(y), bias, delta, has_delta, out, row, column, T, N, BN, BT, BIAS, DELTA, ACCUMULATE)
    else:
        split = tl.program_id(1)
        first = split * steps_per_split
        last = tl.minimum(first + steps_per_split, steps)
        part = _sum(x, w, scale, row, column, T, N, K, first, last, BITS, BN, BT, STEP, EVEN, HINT)
        t = row + tl.arange(0, BT)
        n = column + tl.arange(0, BN)
        mask = (t < T)[:, None] & (n < N)[None, :]
        at = t.to(tl.int64)[:, None] * N + n[None, :]
        plane = T.to(tl.int64) * N
        tl.store(partials + split * plane + at, tl.trans(part), mask=mask)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1:
            y = tl.zeros((BT, BN), dtype=tl.float32)
            for other in range(SPLITS):
                # from the L2 cache: other multiprocessors wrote them
                y += tl.load(partials + other * plane + at, mask=mask, other=0.0, cache_modifier=".cg")
            tl.atomic_xchg(counters + tile, 0)  # for the next launch
            _write(y, bias, delta, has_delta, out, row, column, T, N, BN, BT, BIAS, DELTA, ACCUMULATE)
