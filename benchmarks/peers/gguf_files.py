"""The benchmark's Hugging Face and PEFT folders as the GGUF files that llama.cpp reads, written once and kept.

Only what `stoa.bench.synthetic` writes: Llama shapes without rope scaling, adapters on the seven linears. The
tokenizer has a placeholder word per id, as prompts are token ids and nobody reads the text.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open

_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_KINDS = {
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.float32: gguf.GGMLQuantizationType.F32,
}


def model_file(folder: Path, kept: Path) -> Path:
    """The model in bf16, norms in fp32 as llama.cpp wants them."""
    return _once(kept / "bf16.gguf", lambda work: _write_model(folder, work))


def quantized_file(source: Path, kind: str, quantizer: Path) -> Path:
    """`source` rounded to `kind` (Q8_0, Q4_0) by llama.cpp's own tool."""

    def write(work: Path) -> None:
        subprocess.run([quantizer, source, work, kind], check=True, capture_output=True)

    return _once(source.with_name(f"{kind.lower()}.gguf"), write)


def adapter_file(model: Path, folder: Path, kept: Path, dtype: torch.dtype) -> Path:
    name = f"{folder.name}-{str(dtype).removeprefix('torch.')}.gguf"
    return _once(kept / folder.parent.name / name, lambda work: _write_adapter(model, folder, work, dtype))


def _once(path: Path, write: Callable[[Path], None]) -> Path:
    """A file is there whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}")
        write(work)
        work.rename(path)
    return path


def _write_model(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    _add_shape(writer, config)
    _add_tokenizer(writer, config)
    for name, tensor in _tensors(folder):
        stem = name.removesuffix(".weight")
        one_dim = tensor.dim() == 1
        _add(writer, _gguf_name(stem), tensor.float() if one_dim else _rows(stem, tensor, config))
    _finish(writer)


def _write_adapter(model: Path, folder: Path, out: Path, dtype: torch.dtype) -> None:
    """A: [rank, in] and B: [out, rank] keep their shapes; B's rows are the base weight's, so they move with them."""
    config = json.loads((model / "config.json").read_text())
    facts = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(facts["lora_alpha"]))
    for name, tensor in _tensors(folder):
        stem, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        rows = _rows(stem, tensor, config) if side == "lora_B" else tensor
        _add(writer, f"{_gguf_name(stem)}.{side.lower()}", rows.to(dtype))
    _finish(writer)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_tokenizer(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    special = ["<unk>", "<s>", "</s>"]
    rest = range(len(special), config["vocab_size"])
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *(f"t{i}" for i in rest)])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([*kinds, *(gguf.TokenType.NORMAL for _ in rest)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                yield name, file.get_tensor(name)


def _gguf_name(stem: str) -> str:
    if stem in _ENDS:
        return f"{_ENDS[stem]}.weight"
    layer, module = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_BLOCK[module]}.weight"


def _rows(stem: str, weight: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """[out, any] -> [out, any]: Hugging Face rotates a head's two halves, llama.cpp its neighbouring pairs."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(stem.rpartition(".")[2])
    if heads is None:
        return weight
    halves = weight.view(config[heads], 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    """As bytes, since numpy has no bf16."""
    raw = tensor.contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=_KINDS[tensor.dtype])


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
