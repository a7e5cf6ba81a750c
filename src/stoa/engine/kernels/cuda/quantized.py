"""Quantized weights in GPU memory, and how a kernel gets numbers of the compute dtype back from them.

q and scales are those of `quantize.py`. Inputs are not rounded: q is turned into the compute dtype, which holds it
exactly, each group of 64 inputs is summed in fp32, and the sum is multiplied by the group's scale. Scales are kept in
the compute dtype: rounding to bf16 moves a weight by 0.4% at most, a fraction of what quantizing did to it, and each
byte of a weight is a byte that a decode step must read.

Weights lie in words of 16 bits, as wide as the numbers they become: so they go through shared memory the same way, and
nothing is shuffled between registers. A row has 32 words for each block; word j of a block holds
  int8: inputs j and 32 + j of one group, from low to high
  int4: inputs j, 32 + j, 64 + j and 96 + j of two groups, q + 8 each, from low to high
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from stoa.engine.kernels.cuda.arithmetic import INTERPRETED, dot
from stoa.engine.kernels.quantize import GROUP, quantize_weight

WORDS = 32  # of a block


def block_inputs(bits: int) -> int:
    return WORDS * 16 // bits


def blocks(k: int, bits: int) -> int:
    """Blocks that K inputs take, the last one filled up with zeros."""
    return -(-k // block_inputs(bits))


def quantized_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight: [n, K] -> (int16 [n, blocks * 32], fp32 scales [n, blocks * groups of a block])."""
    k, per_word = weight.shape[1], 16 // bits
    q, scale = quantize_weight(F.pad(weight, (0, blocks(k, bits) * block_inputs(bits) - k)), bits)
    if bits == 8:
        q = q ^ 0x80  # two's complement
    parts = q.view(len(q), -1, per_word, WORDS).to(torch.int32)
    words = sum(parts[:, :, i] << bits * i for i in range(per_word))
    assert isinstance(words, Tensor)
    return words.to(torch.int16).flatten(1), scale


def scale_rows(k: int, bits: int) -> int:
    return blocks(k, bits) * block_inputs(bits) // GROUP


# A bf16 between 128 and 256 holds 128 + n in its seven low bits: 0x4300 + n. So two numbers at once are made by one
# logical instruction ((a & mask) | high) and one subtraction, where casts would cost many times as much.
_UNPACK8: tl.constexpr = tl.constexpr("""{
    .reg .b32 one, next, value, sign;
    mov.b32 one, 0x3F803F80;
    shr.u32 next, $2, 8;
    lop3.b32 value, $2, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, $2, 0x00800080, 0xC300C300, 0xEA;
    fma.rn.bf16x2 $0, value, one, sign;
    lop3.b32 value, next, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, next, 0x00800080, 0xC300C300, 0xEA;
    fma.rn.bf16x2 $1, value, one, sign;
}""")  # 128 + low bits, less 128 or, of a negative number, 256
_UNPACK4: tl.constexpr = tl.constexpr("""{
    .reg .b32 one, less, next, value;
    mov.b32 one, 0x3F803F80;
    mov.b32 less, 0xC308C308;
    lop3.b32 value, $4, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $0, value, one, less;
    shr.u32 next, $4, 4;
    lop3.b32 value, next, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $1, value, one, less;
    shr.u32 next, $4, 8;
    lop3.b32 value, next, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $2, value, one, less;
    shr.u32 next, $4, 12;
    lop3.b32 value, next, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $3, value, one, less;
}""")  # 128 + n, less 136


@triton.jit
def unpacked8(words, dtype: tl.constexpr):
    """int16 -> (numbers in the low bytes, in the high bytes) in `dtype`."""
    if dtype == tl.float32 or INTERPRETED:
        pair = ((words << 8) >> 8).to(tl.float32), (words >> 8).to(tl.float32)
    else:
        pair = tl.inline_asm_elementwise(
            _UNPACK8, "=r,=r,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    return pair


@triton.jit
def _nibble(words, shift: tl.constexpr):
    return ((words >> shift) & 15).to(tl.float32) - 8.0


@triton.jit
def unpacked4(words, dtype: tl.constexpr):
    """int16 -> four numbers in `dtype`, from the lowest bits to the highest."""
    if dtype == tl.float32 or INTERPRETED:
        four = _nibble(words, 0), _nibble(words, 4), _nibble(words, 8), _nibble(words, 12)
    else:
        four = tl.inline_asm_elementwise(
            _UNPACK4,
            "=&r,=&r,=&r,=&r,r",  # outputs are written before the input is last read
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return four


@triton.jit
def load_rows(x, at, present, k, K, STEP: tl.constexpr, EVEN: tl.constexpr):
    """x: its first row; at: [BT, STEP] offsets -> [BT, STEP], zeros where there is nothing."""
    if EVEN:
        mask = present[:, None]
    else:
        mask = present[:, None] & (k + tl.arange(0, STEP) < K)[None, :]
    return tl.load(x + k + at, mask=mask, other=0.0, eviction_policy="evict_last")


@triton.jit
def sum_int8(
    x, w, scale, x_at, w_at, n_at, present, N, K, first, last,
    BN: tl.constexpr, BT: tl.constexpr, EVEN: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    """A step is a group, in two halves."""
    acc = tl.zeros((BN, BT), dtype=tl.float32)
    none = tl.zeros((BN, BT), dtype=tl.float32)
    for step in range(first, last):
        k = step * 64
        x0 = load_rows(x, x_at, present, k, K, 32, EVEN)
        x1 = load_rows(x, x_at, present, k + 32, K, 32, EVEN)
        w0, w1 = unpacked8(tl.load(w + step * 32 + w_at, eviction_policy=HINT), x.dtype.element_ty)
        scales = tl.load(scale + step * N + n_at).to(tl.float32)
        part = dot(w1, tl.trans(x1), dot(w0, tl.trans(x0), none))
        acc = tl.fma(part, scales[:, None], acc)
    return acc


@triton.jit
def sum_int4(
    x, w, scale, x_at, w_at, n_at, present, N, K, first, last,
    BN: tl.constexpr, BT: tl.constexpr, EVEN: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    """A step is two groups, in two halves each."""
    acc = tl.zeros((BN, BT), dtype=tl.float32)
    none = tl.zeros((BN, BT), dtype=tl.float32)
    for step in range(first, last):
        k = step * 128
        x0 = load_rows(x, x_at, present, k, K, 32, EVEN)
        x1 = load_rows(x, x_at, present, k + 32, K, 32, EVEN)
        x2 = load_rows(x, x_at, present, k + 64, K, 32, EVEN)
        x3 = load_rows(x, x_at, present, k + 96, K, 32, EVEN)
        w0, w1, w2, w3 = unpacked4(tl.load(w + step * 32 + w_at, eviction_policy=HINT), x.dtype.element_ty)
        first_scales = tl.load(scale + 2 * step * N + n_at).to(tl.float32)
        second_scales = tl.load(scale + (2 * step + 1) * N + n_at).to(tl.float32)
        part = dot(w1, tl.trans(x1), dot(w0, tl.trans(x0), none))
        acc = tl.fma(part, first_scales[:, None], acc)
        part = dot(w3, tl.trans(x3), dot(w2, tl.trans(x2), none))
        acc = tl.fma(part, second_scales[:, None], acc)
    return acc
