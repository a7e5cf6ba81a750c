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
from torch import Tensor

from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.linear_kernel import linear_kernel
from stoa.engine.kernels.cuda.quantized import WORDS, block_inputs, blocks, quantized_rows, scale_rows
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
    after_lora: bool = False,
    workspace: Workspace | None = None,
) -> None:
    """out[T, N] (=, or += with accumulate) x[T, K] Wᵀ + bias + delta. x in the compute dtype, out in it or fp32.

    delta: fp32 [>= T, N], of which rows with has_delta (int32 [>= T]) other than 0 are read. `workspace` is needed by
    tiles that are not `inside`. after_lora: `lora.shrink` of the same x and `lora.expand` have just been launched, and
    with tiles; the product then runs beside them where kernels begin early."""
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
        BESIDE=after_lora,
        # weights that nobody reads again leave the cache first
        HINT="evict_first" if rows <= tile.rows else "evict_normal",
    )  # fmt: skip
