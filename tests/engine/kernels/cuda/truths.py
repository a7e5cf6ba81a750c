"""What packed weights and adapters mean, in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stoa.engine.kernels.interface import LoraPair
from stoa.engine.kernels.quantize import dequantize, quantize_weight


def weights_of(weights: list[Tensor], bits: int, dtype: torch.dtype) -> Tensor:
    """fp32 [N, K]: what a packed weight means."""
    if bits == 16:
        return torch.cat(weights).to(dtype).float()
    return torch.cat([dequantize(*quantize_weight(w, bits), bits, w.shape[1]) for w in weights])


def lora_part(x: Tensor, splits: tuple[int, ...], pairs: Sequence[LoraPair | None]) -> Tensor:
    """fp32 [T, sum(splits)]: one adapter's part of the rows, with the one rounding that there is on the way."""
    parts = []
    for n, pair in zip(splits, pairs, strict=True):
        if pair is None:
            parts.append(torch.zeros(len(x), n))
            continue
        a, b = (m.to(x.dtype).float() for m in (pair.a, pair.b))
        parts.append(((x.float() @ a.T) * pair.scale).to(x.dtype).float() @ b.T)
    return torch.cat(parts, dim=1)
