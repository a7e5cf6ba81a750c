"""Weight-only int8 and int4: one scale per output and group of 64 inputs, symmetric.

int8: q = round(w / scale), |q| <= 127. int4: the value of largest magnitude becomes -8, so that all sixteen
steps are used (as in llama.cpp's Q4_0). Inputs meet such weights as int8, rounded per row and group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 64
BITS = (8, 4)


def quantize_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight: [N, K] -> q + 2**(bits - 1): uint8 [N, groups, 64], scales: fp32 [N, groups]."""
    groups = _groups(weight)
    if bits == 8:
        scale = groups.abs().amax(-1) / 127
        low, high = -127, 127
    else:
        most = groups.abs().argmax(-1, keepdim=True)
        scale = groups.gather(-1, most).squeeze(-1) / -8
        low, high = -8, 7
    q = (groups / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)).round_().clamp_(low, high)
    return (q + (1 << (bits - 1))).to(torch.uint8), scale


def fill_strips(strips: Tensor, weight: Tensor, bits: int, columns: int = 16) -> None:
    """weight: [N, K] -> strips: uint8 [ceil(N / columns), strip_bytes], blocks as csrc/quantized.h draws them. The slow
    twin of csrc/pack.c's `stoa_quantize`."""
    n = len(strips)
    q, scale = quantize_weight(F.pad(weight, (0, 0, 0, n * columns - weight.shape[0])), bits)
    groups = scale.shape[1]
    # [strip, column, group, lane, input] -> [strip, group, lane, column, input]
    lanes = q.view(n, columns, groups, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if bits == 4:
        lanes = lanes[:, :, 0::2] | lanes[:, :, 1::2] << 4
    blocks = strips.view(n, groups, -1)
    scales = scale.view(n, columns, groups).transpose(1, 2).contiguous()
    blocks[:, :, : columns * 4] = scales.view(torch.uint8)
    blocks[:, :, columns * 4 :] = lanes.flatten(2)


def round_inputs(x: Tensor) -> Tensor:
    """x: [T, K] -> the same, fp32, as quantized weights see it."""
    groups = _groups(x)
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, 0.0)
    return ((groups * inverse).round() * (most / 127)).flatten(1)[:, : x.shape[1]]


def dequantize(q: Tensor, scale: Tensor, bits: int, k: int) -> Tensor:
    """fp32 [N, k]."""
    values: Tensor = (q.float() - (1 << (bits - 1))) * scale.unsqueeze(-1)
    return values.flatten(1)[:, :k]


def _groups(x: Tensor) -> Tensor:
    """[N, K] -> fp32 [N, groups, 64], zeros beyond K."""
    padded: Tensor = F.pad(x.float(), (0, -x.shape[1] % GROUP))
    return padded.view(x.shape[0], -1, GROUP)
