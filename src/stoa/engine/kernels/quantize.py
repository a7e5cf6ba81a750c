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
