"""Operations that read each value once: norms and gates."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import inputs_ready, rounded
from stoa.engine.kernels.cuda.launch import Launch

_PIECE = 1024  # columns that one program takes where columns do not depend on each other


def rms_norm(launch: Launch, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """x: [T, H] fp32, weight: [H] fp32 -> out: [T, H]."""
    tile = triton.next_power_of_2(x.shape[1])
    launch(
        _rms_norm, (x.shape[0],), x, weight, out, eps,
        warps=max(1, min(16, tile // 512)), stages=1, H=x.shape[1], TILE=tile,
    )  # fmt: skip


def silu_mul(launch: Launch, gate_up: Tensor, out: Tensor) -> None:
    """gate_up: [T, 2I] -> out: [T, I] = silu(gate) * up."""
    rows, width = out.shape
    tile = min(_PIECE, triton.next_power_of_2(width))
    launch(
        _silu_mul, (rows, triton.cdiv(width, tile)), gate_up, out,
        warps=max(1, tile // 256), stages=1, WIDTH=width, TILE=tile,
    )  # fmt: skip


@triton.jit
def _rms_norm(x, weight, out, eps, H: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr):
    inputs_ready(EARLY)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    values = tl.load(x + row * H + i, mask=i < H, other=0.0)
    norm = tl.rsqrt(tl.sum(values * values, 0) / H + eps)
    scaled = values * norm * tl.load(weight + i, mask=i < H, other=0.0)
    tl.store(out + row * H + i, rounded(scaled, out.dtype.element_ty), mask=i < H)


@triton.jit
def _silu_mul(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr):
    inputs_ready(EARLY)
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gate = tl.load(gate_up + row * 2 * WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # never too large
    result = gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small) * up
    tl.store(out + row * WIDTH + i, rounded(result, out.dtype.element_ty), mask=i < WIDTH)
