"""PEFT folders written by hand, so that each fault can be put in its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stoa.engine.model.config import ModelConfig, parse_model_config

RAW: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BASE: ModelConfig = parse_model_config(RAW)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
}
MODULES = ("self_attn.q_proj", "mlp.down_proj")


def tensors(
    modules: Iterable[str] = MODULES,
    layers: Iterable[int] = (0, 1),
    rank: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A and B of the modules, under PEFT's names."""
    made = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        for module in modules:
            outs, ins = BASE.linear_shapes()[module.rsplit(".", 1)[1]]
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = torch.randn(rank, ins, generator=made).to(dtype)
            found[f"{name}.lora_B.weight"] = torch.randn(outs, rank, generator=made).to(dtype)
    return found


def write(
    folder: Path, weights: Mapping[str, torch.Tensor] | None = None, config: Mapping[str, Any] | None = None
) -> Path:
    """A PEFT folder; by default one that is accepted."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    save_file(dict(tensors() if weights is None else weights), folder / "adapter_model.safetensors")
    return folder
