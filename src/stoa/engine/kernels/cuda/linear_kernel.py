"""The kernel behind linear.py, which says what a program computes and in which order it sums."""

from __future__ import annotations

import triton
import triton.language as tl

from stoa.engine.kernels.cuda.arithmetic import (
    dot,
    next_may_begin,
    prefetch,
    rounded,
    up_to_date,
    wait_for_inputs,
)
from stoa.engine.kernels.cuda.quantized import load_rows, sum_int4, sum_int8

_LINES = tl.constexpr(8)  # of 64 bytes, of each row of the weight: what the pipeline loads first


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


@triton.jit
def _prefetch_rows(w, column, N, K, step, BITS: tl.constexpr, BN: tl.constexpr, STEP: tl.constexpr):
    """What the first turns of the loop read of BN rows of the weight, from `step` on."""
    stride = K if BITS == 16 else tl.cdiv(K, STEP) * 32
    SIDE: tl.constexpr = STEP if BITS == 16 else 32  # elements of a step
    LINE: tl.constexpr = 512 // w.dtype.element_ty.primitive_bitwidth
    n = tl.minimum(tl.arange(0, BN), N - 1 - column)
    k = tl.minimum(step * SIDE + tl.arange(0, _LINES) * LINE, stride - 1)
    prefetch(w + column.to(tl.int64) * stride + n[:, None] * stride + k[None, :])


# When it runs beside LoRA (BESIDE), a program reads x before it has waited, and writes only after that.
# x is complete by then: this kernel begins once all programs of `_expand` have begun, which do once all of `_shrink`
# have waited; what `_shrink` waited for had waited for everything before it. That holds whatever the tiles and ranks: no
# program of either leaves without waiting, and with no tiles at all the host does not ask for BESIDE. Written, complete
# and in the L2 cache, x can only be missed through a line that the L1 cache kept of what lay there before: `up_to_date`.
# Nothing else changes: nobody who may still run then (`_shrink`, `_expand`, this) writes x or the weight. partials,
# counters, delta and out are touched only after the wait, when all before this kernel is complete, as ever.


@triton.jit(do_not_specialize=["T", "steps", "steps_per_split"])
def linear_kernel(
    x, w, scale, bias, delta, has_delta, out, partials, counters, T, N, K, steps, steps_per_split,
    BITS: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    ACROSS: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, DELTA: tl.constexpr,
    ACCUMULATE: tl.constexpr, BESIDE: tl.constexpr, HINT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of y, SPLITS if ACROSS)."""
    next_may_begin(EARLY)
    tile = tl.program_id(0)
    row_tile, column_tile = _place(tile, tl.cdiv(T, BT), tl.cdiv(N, BN), 8)
    row, column = row_tile * BT, column_tile * BN
    if BESIDE:
        up_to_date(EARLY)
    elif EARLY:
        begin = tl.program_id(1) * steps_per_split
        _prefetch_rows(w, column, N, K, begin, BITS, BN, STEP)  # weights are there whatever comes before
        wait_for_inputs(EARLY)
    if not ACROSS:
        if SPLITS == 1:
            y = _sum(x, w, scale, row, column, T, N, K, 0, steps, BITS, BN, BT, STEP, EVEN, HINT)
        else:
            y = tl.zeros((BN, BT), dtype=tl.float32)
            for split in range(SPLITS):
                first = split * steps_per_split
                last = tl.minimum(first + steps_per_split, steps)
                y += _sum(x, w, scale, row, column, T, N, K, first, last, BITS, BN, BT, STEP, EVEN, HINT)
        if BESIDE:
            wait_for_inputs(EARLY)
        _write(tl.trans(y), bias, delta, has_delta, out, row, column, T, N, BN, BT, BIAS, DELTA, ACCUMULATE)
    else:
        split = tl.program_id(1)
        first = split * steps_per_split
        last = tl.minimum(first + steps_per_split, steps)
        part = _sum(x, w, scale, row, column, T, N, K, first, last, BITS, BN, BT, STEP, EVEN, HINT)
        if BESIDE:
            wait_for_inputs(EARLY)
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
