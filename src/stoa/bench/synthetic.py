"""Models and adapters with random weights, in the folders that every engine reads.

Throughput does not depend on what weights say, so a benchmark needs no download: shape and bytes are real.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SHARD_BYTES = 2 << 30
_STD = 0.02


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | more


SHAPES: dict[str, dict[str, Any]] = {
    "134m": _llama(768, 12, 12, 12, 2048, 32000),
    "1.1b": _llama(2048, 22, 32, 4, 5632, 32000),  # TinyLlama
    "8b": _llama(4096, 32, 32, 8, 14336, 128256, rope_theta=500000.0),  # Llama 3.1
}


def write_model(shape: str, folder: Path, seed: int = 0, device: str = "cpu") -> None:
    """Writes a Hugging Face folder of `SHAPES[shape]` in bf16, unless it is there already. `device`: where random numbers
    are drawn; others on each."""
    _once(folder, lambda work: _write_model(SHAPES[shape], work, seed, device))


def write_adapter(
    config_json: Path,
    folder: Path,
    *,
    rank: int = 16,
    alpha: int = 32,
    seed: int = 0,
    targets: tuple[str, ...] = (),
    device: str = "cpu",
) -> None:
    """Writes a PEFT folder for the model of `config_json` (all seven linears by default), unless it is there."""
    config = json.loads(config_json.read_text())
    _once(folder, lambda work: _write_adapter(config, work, rank, alpha, seed, targets or _TARGETS, device))


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_TARGETS = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder is there whole or not at all."""
    if folder.exists():
        return
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        write(work)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def linear_shapes(c: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of a layer's linears, from a config.json."""
    h, i = c["hidden_size"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    return {
        "q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q),
        "gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i),
    }  # fmt: skip


def _path(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if module in _ATTENTION else 'mlp'}.{module}"


def _write_model(config: dict[str, Any], folder: Path, seed: int, device: str = "cpu") -> None:
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator(device).manual_seed(seed)
    h, v = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"{_path(layer, m)}.weight": s for m, s in linear_shapes(config).items()}
        shapes |= {
            f"model.layers.{layer}.{n}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")
        }
    shapes |= {"model.norm.weight": (h,), "lm_head.weight": (v, h)}
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, shape in shapes.items():
        one_dim = len(shape) == 1
        tensor = torch.ones(shape) if one_dim else torch.randn(shape, generator=rng, device=device) * _STD
        tensor = tensor.to("cpu", torch.bfloat16)
        if size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        total = sum(t.nbytes for s in shards for t in s.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(folder, v)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One word per token id: enough for engines that insist on a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _write_adapter(
    config: dict[str, Any],
    folder: Path,
    rank: int,
    alpha: int,
    seed: int,
    targets: tuple[str, ...],
    device: str,
) -> None:
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in targets:
            out, inputs = linear_shapes(config)[module]
            for name, shape in (("lora_A", (rank, inputs)), ("lora_B", (out, rank))):
                key = f"base_model.model.{_path(layer, module)}.{name}.weight"
                values = torch.randn(shape, generator=rng, device=device) * _STD
                tensors[key] = values.to("cpu", torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(facts, indent=2))
