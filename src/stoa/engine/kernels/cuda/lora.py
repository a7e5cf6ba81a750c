"""Batched LoRA: y += scale (x Aᵀ) Bᵀ, with another adapter for each segment of rows, read where it lies in the pool.

An adapter in pool memory (true bytes; each row is filled up to 16 of them, so that loads can be wide):

    records   one of 64 bytes for each linear of the model: where A lies, where B of up to three parts (bytes behind the
              adapter's address, so that it may lie anywhere), their ranks (int32), their scales (fp32)
    A         of each linear [sum of its parts' ranks, K]: q, k and v (gate and up) shrink in one pass over x
    B         of each part, turned: [rank, N], so that a load is as wide for rank 1 as for rank 64

Two launches serve a linear, whatever its parts and ranks. A program of `_shrink` takes a tile of up to 16 rows of one
adapter and a piece of K; one of `_expand` a tile and some columns of one part, and first adds the pieces up, in order. One
kernel serves prompts (SGMV in Punica's words, arXiv 2310.18547) and single rows (BGMV): a row's bits must not depend on
whether it came in a prompt. The pieces of K follow from K alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import dot, next_may_begin, prefetch, rounded, wait_for_inputs
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.segments import TILE, DeviceSegments
from stoa.engine.kernels.interface import Linear, LoraPair

MAX_PARTS = 3
_ROW_BYTES = 16
_RECORD = np.dtype(
    [
        ("a", np.int64),
        ("b", np.int64, MAX_PARTS),
        ("ranks", np.int32, MAX_PARTS),
        ("scales", np.float32, MAX_PARTS),
        ("unused", np.int64),
    ]
)
RECORD_BYTES = tl.constexpr(64)
_K_STEP = 128
_MOST_PIECES = 16
_PIECE = 512  # inputs that one program of `_shrink` takes, unless that makes too many pieces
SHRINK_COLUMNS = {1: 16, 2: 32, 3: 64}  # columns of A in flight, by parts: rank 16 needs one round


# -- adapters in the pool


def filled(width: int, dtype: torch.dtype) -> int:
    """Elements of a row that is filled up."""
    per = _ROW_BYTES // dtype.itemsize
    return -(-width // per) * per


def adapter_nbytes(linears: Sequence[Linear], ranks: Sequence[Sequence[int]], dtype: torch.dtype) -> int:
    elements = sum(
        sum(group) * filled(linear.k, dtype)
        + sum(rank * filled(n, dtype) for n, rank in zip(linear.splits, group, strict=True))
        for linear, group in zip(linears, ranks, strict=True)
    )
    return len(linears) * _RECORD.itemsize + elements * dtype.itemsize


def lay_out(
    linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]], dtype: torch.dtype, into: Tensor
) -> None:
    """Writes the adapter to host memory, uint8 [adapter_nbytes]; a copy of it serves wherever it lies."""
    records = np.zeros(len(linears), dtype=_RECORD)
    flat = into[records.nbytes :].view(dtype)
    bits = torch.int16 if dtype.itemsize == 2 else torch.int32
    at = 0

    def place(matrix: Tensor) -> int:
        """Rows filled up; returns where they begin."""
        nonlocal at
        rows, width = matrix.shape
        where = records.nbytes + at * dtype.itemsize
        target = flat[at : at + rows * filled(width, dtype)].view(rows, -1)
        # numpy turns B four times as fast as torch does on one thread
        np.copyto(target[:, :width].view(bits).numpy(), matrix.to(dtype).view(bits).numpy())
        target[:, width:] = 0
        at += target.numel()
        return where

    for record, group in zip(records, pairs, strict=True):
        present = [(part, pair) for part, pair in enumerate(group) if pair is not None]
        for i, (part, pair) in enumerate(present):
            where = place(pair.a)
            record["a"] = record["a"] if i else where
            record["ranks"][part], record["scales"][part] = pair.a.shape[0], pair.scale
        for part, pair in present:
            record["b"][part] = place(pair.b.T)
    into[: records.nbytes].numpy()[:] = records.view(np.uint8)


# -- the two launches


@dataclass(frozen=True)
class Expand:
    """What may be chosen without changing a bit."""

    columns: int
    warps: int
    stages: int


EXPANDS = tuple(
    Expand(c, w, s) for c, w, s in ((256, 4, 2), (512, 4, 2), (128, 4, 2), (512, 8, 2), (1024, 8, 1))
)
SHRINK_WARPS, SHRINK_STAGES = 4, 4
_LINES = tl.constexpr(16)  # of 64 bytes: what stages hold of a row of A in bf16, and a usual piece has


def pieces(k: int) -> tuple[int, int]:
    """(how many pieces of K, inputs of each): of K alone."""
    span = max(_PIECE, -(-k // (_MOST_PIECES * _K_STEP)) * _K_STEP)
    return -(-k // span), span


def shrink(launch: Launch, x: Tensor, parts: int, index: int, segments: DeviceSegments, h: Tensor) -> None:
    """x: [T, K], h: fp32 [pieces, >= T, columns], of each piece of K the sums x Aᵀ of linear `index`, for the rows that
    have an adapter; columns: at least the sum of any adapter's ranks on the linear's `parts`."""
    k = x.shape[1]
    count, span = pieces(k)
    launch(
        _shrink, (segments.num_tiles, count), x, segments.tiles, h, index, k, filled(k, x.dtype), h.shape[1],
        h.shape[2], warps=SHRINK_WARPS, stages=SHRINK_STAGES, SPAN=span, STEP=min(_K_STEP, _power_of_two(k)),
        COLUMNS=SHRINK_COLUMNS[parts], ROWS=TILE,
    )  # fmt: skip


def expand(
    launch: Launch, h: Tensor, dtype: torch.dtype, k: int, splits: Sequence[int], index: int,
    segments: DeviceSegments, out: Tensor, how: Expand, *, accumulate: bool,
) -> None:  # fmt: skip
    """out: fp32 [>= T, sum(splits)]: h Bᵀ for the rows that have an adapter, zeros for parts it leaves alone; or added to
    what is there."""
    columns = min(how.columns, _power_of_two(max(splits)))
    n = [*splits, 0, 0][:MAX_PARTS]
    blocks = [-(-width // columns) for width in n]
    ends = np.cumsum(blocks).tolist()
    launch(
        _expand, (segments.num_tiles, ends[-1]), h, segments.tiles, out, index, h.shape[1], h.shape[2], out.shape[1],
        *n, *(filled(width, dtype) for width in n), ends[0], ends[1], warps=how.warps, stages=how.stages,
        PIECES=pieces(k)[0], COLUMNS=columns, ROWS=TILE, DTYPE=_TL[dtype],
        UNIT=filled(1, dtype), ACCUMULATE=accumulate,
    )  # fmt: skip


_TL = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


# Tiles and adapters are there whatever kernel comes before: they are sent before a step's first one, so that they may be
# read before it has ended. They come from the L2 cache, as nothing drops then what the L1 cache still holds of others.


@triton.jit
def _tile(tiles):
    """(first row, rows, adapter's address) of this program's tile."""
    tile = tiles + tl.program_id(0) * 3
    first = tl.load(tile, cache_modifier=".cg")
    return first, tl.load(tile + 1, cache_modifier=".cg"), tl.load(tile + 2, cache_modifier=".cg")


@triton.jit
def _ranks(record, used):
    """Of the three parts; absent ones have 0, and so has what is not `used`."""
    ranks = (record + 32).to(tl.pointer_type(tl.int32))
    rank0 = tl.load(ranks, mask=used, other=0, cache_modifier=".cg")
    rank1 = tl.load(ranks + 1, mask=used, other=0, cache_modifier=".cg")
    return rank0, rank1, tl.load(ranks + 2, mask=used, other=0, cache_modifier=".cg")


@triton.jit
def _prefetch_rows(a, total, begin, end, A_STRIDE, COLUMNS: tl.constexpr):
    """What `_shrink` reads of A first."""
    LINE: tl.constexpr = 512 // a.dtype.element_ty.primitive_bitwidth  # elements in 64 bytes
    if total > 0:
        columns = tl.minimum(tl.arange(0, COLUMNS), total - 1)
        inputs = tl.minimum(begin + tl.arange(0, _LINES) * LINE, end - 1)
        prefetch(a + columns[:, None] * A_STRIDE + inputs[None, :])


# `_shrink` lets the next kernel begin only when it has waited itself: whoever begins later finds x complete, which lets
# the product x W^T run beside LoRA (see linear_kernel.py).


@triton.jit(do_not_specialize=["index", "T"])
def _shrink(
    x, tiles, h, index, K, A_STRIDE, T, WIDTH,
    SPAN: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    first, rows, adapter = _tile(tiles)
    record = adapter + index * RECORD_BYTES
    rank0, rank1, rank2 = _ranks(record, rows > 0)
    total = rank0 + rank1 + rank2
    offset = tl.load(record.to(tl.pointer_type(tl.int64)), mask=rows > 0, other=0, cache_modifier=".cg")
    a = tl.multiple_of((adapter + offset).to(tl.pointer_type(x.dtype.element_ty)), 16)
    piece = tl.program_id(1)
    begin = piece * SPAN
    end = tl.minimum(begin + SPAN, K)
    row = tl.arange(0, ROWS)
    if EARLY:
        _prefetch_rows(a, total, begin, end, A_STRIDE, COLUMNS)
    wait_for_inputs(EARLY)
    next_may_begin(EARLY)
    xs = x + (first + row)[:, None] * K
    for column in range(0, total, COLUMNS):
        columns = column + tl.arange(0, COLUMNS)
        acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for k in range(begin, end, STEP):
            inputs = k + tl.arange(0, STEP)
            x_tile = tl.load(
                xs + inputs[None, :], mask=(row < rows)[:, None] & (inputs < end)[None, :], other=0.0
            )
            a_tile = tl.load(
                a + columns[:, None] * A_STRIDE + inputs[None, :],
                mask=(columns < total)[:, None] & (inputs < end)[None, :], other=0.0, eviction_policy="evict_first",
            )  # fmt: skip
            acc = dot(x_tile, tl.trans(a_tile), acc)
        to = h + (piece * T + first + row)[:, None] * WIDTH + columns[None, :]
        tl.store(to, acc, mask=(row < rows)[:, None] & (columns < total)[None, :])


@triton.jit(do_not_specialize=["index", "T"])
def _expand(
    h, tiles, out, index, T, WIDTH, N, N0, N1, N2, B0, B1, B2, END0, END1,
    PIECES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    ACCUMULATE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    next_may_begin(EARLY)
    first, rows, adapter = _tile(tiles)
    if rows > 0:
        record = adapter + index * RECORD_BYTES
        rank0, rank1, rank2 = _ranks(record, rows > 0)
        block = tl.program_id(1)
        part = (block >= END0).to(tl.int32) + (block >= END1).to(tl.int32)
        begin = tl.where(part == 0, 0, tl.where(part == 1, END0, END1))
        n = tl.where(part == 0, N0, tl.where(part == 1, N1, N2))
        stride = tl.where(part == 0, B0, tl.where(part == 1, B1, B2))
        stride = tl.multiple_of(stride, UNIT)
        rank = tl.where(part == 0, rank0, tl.where(part == 1, rank1, rank2))
        before = tl.where(part == 0, 0, tl.where(part == 1, rank0, rank0 + rank1))  # columns of h
        left = tl.where(part == 0, 0, tl.where(part == 1, N0, N0 + N1))  # columns of out
        scale = tl.load((record + 44).to(tl.pointer_type(tl.float32)) + part, cache_modifier=".cg")
        offset = tl.load((record + 8).to(tl.pointer_type(tl.int64)) + part, cache_modifier=".cg")
        b = tl.multiple_of((adapter + offset).to(tl.pointer_type(DTYPE)), 16)
        row = tl.arange(0, ROWS)
        columns = (block - begin) * COLUMNS + tl.arange(0, COLUMNS)
        acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for r in range(0, rank, 16):
            ranks = r + tl.arange(0, 16)
            b_tile = tl.load(
                b + ranks[:, None] * stride + columns[None, :], mask=(ranks < rank)[:, None] & (columns < n)[None, :],
                other=0.0, eviction_policy="evict_first",
            )  # fmt: skip
            wait_for_inputs(EARLY)  # B is there whatever comes before
            mask = (row < rows)[:, None] & (ranks < rank)[None, :]
            at = h + (first + row)[:, None] * WIDTH + before + ranks[None, :]
            sums = tl.zeros((ROWS, 16), dtype=tl.float32)
            for piece in tl.static_range(PIECES):
                sums += tl.load(at + piece * T * WIDTH, mask=mask, other=0.0)
            acc = dot(rounded(sums * scale, DTYPE), b_tile, acc)
        wait_for_inputs(EARLY)
        to = out + (first + row)[:, None] * N + left + columns[None, :]
        mask = (row < rows)[:, None] & (columns < n)[None, :]
        if ACCUMULATE:
            acc += tl.load(to, mask=mask, other=0.0)
        tl.store(to, acc, mask=mask)
    wait_for_inputs(EARLY)
