"""Rotates queries and keys by their positions, and puts keys and values into their pages: one launch a layer."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import inputs_ready, rounded
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.step import DeviceRows
from stoa.engine.kernels.interface import KVLayout

TILE_H = 8  # heads that one program takes


def rope_append(
    launch: Launch, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int,
    rows: DeviceRows, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
) -> None:  # fmt: skip
    """As `interface.LayerOps.rope_append`; norms are fp32 [D]. A row with slot -1 leaves nothing in the pages."""
    d, heads = layout.head_dim, layout.kv_heads
    q_heads = q_out.shape[1] // d
    parts = triton.cdiv(q_heads, TILE_H) + 2 * triton.cdiv(heads, TILE_H)
    half = triton.next_power_of_2(d // 2)
    launch(
        _rope_append, (rows.count, parts),
        qkv, q_out, rope, kv.view(qkv.dtype), rows.positions, rows.slots,
        rope if q_norm is None else q_norm, rope if k_norm is None else k_norm, layer, eps,
        warps=max(1, min(8, TILE_H * half // 256)), stages=1,
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None, Q_HEADS=q_heads, HEADS=heads, D=d,
        BLOCK=layout.block_size, PAGE=layout.page_bytes // qkv.dtype.itemsize, TILE_H=TILE_H, HALF=half,
    )  # fmt: skip


@triton.jit
def _rotate(first, second, weight, table, i, eps, NORM: tl.constexpr, D: tl.constexpr):
    """first, second: fp32 [heads, HALF], the halves of each head -> the same, normalised if need be and rotated."""
    there = i < D // 2
    if NORM:
        mean = tl.sum(tl.fma(first, first, second * second), 1) / D
        norm = tl.rsqrt(mean + eps)[:, None]
        first = first * norm * tl.load(weight + i, mask=there, other=0.0)[None, :]
        second = second * norm * tl.load(weight + D // 2 + i, mask=there, other=0.0)[None, :]
    cos = tl.load(table + i, mask=there, other=0.0)[None, :]
    sin = tl.load(table + D // 2 + i, mask=there, other=0.0)[None, :]
    return tl.fma(first, cos, -(second * sin)), tl.fma(second, cos, first * sin)


@triton.jit(do_not_specialize=["layer"])
def _rope_append(
    qkv, q_out, rope, pages, positions, slots, q_norm, k_norm, layer, eps,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, Q_HEADS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, TILE_H: tl.constexpr, HALF: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: rows, then blocks of query heads, of key heads, of value heads."""
    inputs_ready(EARLY)
    q_parts: tl.constexpr = (Q_HEADS + TILE_H - 1) // TILE_H
    parts: tl.constexpr = (HEADS + TILE_H - 1) // TILE_H
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HALF)
    there = (i < D // 2)[None, :]
    table = rope + tl.load(positions + row).to(tl.int64) * D
    x = qkv + row * ((Q_HEADS + 2 * HEADS) * D)
    if part < q_parts:
        head = part * TILE_H + tl.arange(0, TILE_H)
        inside = (head < Q_HEADS)[:, None] & there
        at = (head * D)[:, None] + i[None, :]
        first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + D // 2 + at, mask=inside, other=0.0).to(tl.float32)
        first, second = _rotate(first, second, q_norm, table, i, eps, Q_NORM, D)
        target = q_out + row * (Q_HEADS * D) + at
        tl.store(target, rounded(first, qkv.dtype.element_ty), mask=inside)
        tl.store(target + D // 2, rounded(second, qkv.dtype.element_ty), mask=inside)
        return

    slot = tl.load(slots + row)
    if slot < 0:
        return
    which = (part - q_parts) // parts  # 0: keys, 1: values
    head = (part - q_parts) % parts * TILE_H + tl.arange(0, TILE_H)
    inside = (head < HEADS)[:, None] & there
    at = ((Q_HEADS + which * HEADS + head) * D)[:, None] + i[None, :]
    target = pages + slot // BLOCK * PAGE + (layer * 2 + which) * (HEADS * BLOCK * D) + slot % BLOCK * D
    target = target + (head * (BLOCK * D))[:, None] + i[None, :]
    first = tl.load(x + at, mask=inside, other=0.0)
    second = tl.load(x + D // 2 + at, mask=inside, other=0.0)
    if which == 0:
        turned, other = _rotate(first.to(tl.float32), second.to(tl.float32), k_norm, table, i, eps, K_NORM, D)
        tl.store(target, rounded(turned, qkv.dtype.element_ty), mask=inside)
        tl.store(target + D // 2, rounded(other, qkv.dtype.element_ty), mask=inside)
    else:
        tl.store(target, first, mask=inside)
        tl.store(target + D // 2, second, mask=inside)
