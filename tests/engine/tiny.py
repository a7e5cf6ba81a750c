"""Small random models and adapters of every supported family, made by transformers and peft."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

# name -> (family, overrides of COMMON)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-odd-vocab": ("Llama", {"vocab_size": 321, "tie_word_embeddings": True}),
    "llama-mha-odd": ("Llama", {"num_key_value_heads": 4, "head_dim": 10, "intermediate_size": 75}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


@functools.cache
def model_folder(name: str) -> Path:
    """A Hugging Face folder in fp32 with the given variant; made once per test run."""
    import transformers

    family, overrides = VARIANTS[name]
    config = getattr(transformers, f"{family}Config")(**(COMMON | overrides))
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{family}ForCausalLM")(config).float()
    with torch.no_grad():
        for key, p in model.named_parameters():
            # Larger than the default 0.02, so that logits differ clearly; biases and norms not at rest.
            p.add_(torch.randn_like(p) * (0.1 if p.ndim > 1 or "bias" in key else 0.2))
    folder = _scratch() / name
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class LoraShape:
    rank: int
    targets: tuple[str, ...]
    alpha: int = 16
    rslora: bool = False


LORAS = (
    LoraShape(4, ("q_proj", "v_proj")),
    LoraShape(16, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    LoraShape(7, ("down_proj", "o_proj"), alpha=3),
    LoraShape(33, ("gate_proj", "k_proj"), rslora=True),
    LoraShape(1, ("up_proj",)),
)


@functools.cache
def adapter_folder(model: str, which: int) -> Path:
    """A PEFT folder for LORAS[which] on the model variant, with weights that matter."""
    import peft

    shape = LORAS[which]
    config = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=list(shape.targets),
        use_rslora=shape.rslora,
        init_lora_weights=False,
    )
    torch.manual_seed(100 + which)
    wrapped = peft.get_peft_model(hf_model(model), config)
    with torch.no_grad():
        for key, p in wrapped.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn_like(p) * 0.15)
    folder = _scratch() / f"{model}-adapter-{which}"
    wrapped.save_pretrained(folder)
    return folder


def hf_model(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_folder(name), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def hf_with_adapter(name: str, which: int | None) -> Any:
    if which is None:
        return hf_model(name)
    import peft

    return peft.PeftModel.from_pretrained(hf_model(name), adapter_folder(name, which)).eval()


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stoa-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
