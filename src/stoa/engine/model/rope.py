"""Rotary position embedding tables for every scaling the supported families publish.

Formulas follow the definitions in transformers' `modeling_rope_utils` so that tables agree bit for bit
where its arithmetic is fp32: default (Su et al., RoFormer), linear (Chen et al.), llama3 (Llama 3.1
model card), yarn (Peng et al., arXiv 2309.00071).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stoa.engine.model.config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, positions: int) -> Tensor:
    """[positions, head_dim] fp32: cos of the head_dim/2 angles, then sin, times the attention factor."""
    inv_freq, factor = _inverse_frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inv_freq)
    return torch.cat((angles.cos() * factor, angles.sin() * factor), dim=1).contiguous()


def _inverse_frequencies(rope: RopeConfig, dim: int) -> tuple[Tensor, float]:
    base = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    params = dict(rope.params or {})
    if rope.type == "linear":
        return base / _number(params, "factor"), 1.0
    if rope.type == "llama3":
        return _llama3(base, params), 1.0
    if rope.type == "yarn":
        return _yarn(rope.theta, base, dim, params)
    return base, 1.0


def _number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = params.get(key)
    return float(value if value is not None else default)  # type: ignore[arg-type]


def _llama3(base: Tensor, params: Mapping[str, Any]) -> Tensor:
    factor = _number(params, "factor")
    low, high = _number(params, "low_freq_factor"), _number(params, "high_freq_factor")
    context = _number(params, "original_max_position_embeddings")
    wavelength = 2 * math.pi / base
    scaled = torch.where(wavelength > context / low, base / factor, base)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(medium, blended, scaled)


def _yarn(theta: float, base: Tensor, dim: int, params: Mapping[str, Any]) -> tuple[Tensor, float]:
    factor = _number(params, "factor")
    context = _number(params, "original_max_position_embeddings")

    def correction(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = correction(_number(params, "beta_fast", 32))
    high = correction(_number(params, "beta_slow", 1))
    if params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    keep = 1 - ramp
    inverse = (base / factor) * (1 - keep) + base * keep
    return inverse, _yarn_attention_factor(factor, params)


def _yarn_attention_factor(factor: float, params: Mapping[str, Any]) -> float:
    def mscale(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    if params.get("attention_factor") is not None:
        return _number(params, "attention_factor")
    if params.get("mscale") and params.get("mscale_all_dim"):
        return mscale(factor, _number(params, "mscale")) / mscale(factor, _number(params, "mscale_all_dim"))
    return mscale(factor)
