"""Opens adapter_model.safetensors and checks its tensors against the base model, as plain bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stoa.engine.adapters.names import (
    LINEARS,
    WEIGHTS_FILE,
    Key,
    TensorName,
    missing,
    module_name,
    parse_tensor_name,
)
from stoa.engine.kernels.library import all_finite
from stoa.engine.model.config import ModelConfig
from stoa.errors import InvalidAdapter

_MAX_HEADER_BYTES = 64_000_000
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

# dtype -> (numpy view, bits of the exponent): all exponent bits set means NaN or infinity.
_DTYPES: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

# PEFT saves the untrained embeddings too when lm_head is targeted.
_BASE_COPIES = ("base_model.model.lm_head.base_layer.weight", "base_model.model.model.embed_tokens.weight")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file. `data` are its bytes, mapped from the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


def map_weights(path: Path) -> NDArray[np.uint8]:
    """The bytes of the file, mapped."""
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.glob("*") if p.suffix in _PICKLES)
        if not pickles:
            raise missing(path)
        raise InvalidAdapter(
            f"{path.parent} holds pickled weights ({pickles[0]}), which can run code when read; "
            f"accepted: {WEIGHTS_FILE} (safetensors)"
        )
    if path.stat().st_size < 8:
        raise InvalidAdapter(f"{path} is truncated: it has {path.stat().st_size} bytes")
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # all at once, not page by page
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="c"))  # never written; torch wants it writable


def list_tensors(path: Path, data: NDArray[np.uint8]) -> list[Tensor]:
    """The file's tensors. The library checks the layout (bounds, overlaps), which the header then tells."""
    header = int(data[:8].view("<u8")[0])
    if header > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise InvalidAdapter(f"{path} is truncated or not a safetensors file")
    try:
        with safe_open(path, framework="numpy"):
            pass
        listed = json.loads(data[8 : 8 + header].tobytes())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path} is truncated or damaged: {error}") from None
    listed.pop("__metadata__", None)
    body = data[8 + header :]
    return [
        Tensor(name, t["dtype"], tuple(t["shape"]), body[slice(*t["data_offsets"])])
        for name, t in listed.items()
    ]


def pair_up(tensors: Iterable[Tensor], model: ModelConfig) -> dict[Key, tuple[Tensor, Tensor]]:
    """A and B of every module, in the order of layers. Refuses tensors that belong to no such pair."""
    sides: dict[Key, dict[str, Tensor]] = {}
    for tensor in tensors:
        if tensor.name in _BASE_COPIES and tensor.shape == (model.vocab_size, model.hidden_size):
            continue
        parsed = parse_tensor_name(tensor.name)
        if parsed is None:
            raise InvalidAdapter(_not_lora(tensor, model))
        _check_place(tensor.name, parsed, model)
        if sides.setdefault(parsed.key, {}).setdefault(parsed.side, tensor) is not tensor:
            raise InvalidAdapter(f"{module_name(parsed.key)} has two tensors for lora_{parsed.side}")
    if not sides:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds no LoRA tensors")
    for key, found in sides.items():
        for has, lacks in (("A", "B"), ("B", "A")):
            if lacks not in found:
                raise InvalidAdapter(f"{module_name(key)} has lora_{has} but no lora_{lacks}")
    return {key: (sides[key]["A"], sides[key]["B"]) for key in sorted(sides)}


def check_pair(a: Tensor, b: Tensor, rank: int, linear: tuple[int, int]) -> None:
    """Refuses other shapes than A [rank, in] and B [out, rank] for `linear` (out, in), other dtypes, and
    values that are not finite."""
    outs, ins = linear
    for tensor, expected in ((a, (rank, ins)), (b, (outs, rank))):
        if tensor.dtype not in _DTYPES:
            raise InvalidAdapter(f"{tensor.name} has dtype {tensor.dtype}; accepted: {', '.join(_DTYPES)}")
        if tensor.shape != expected:
            raise InvalidAdapter(
                f"{tensor.name} has shape {list(tensor.shape)}, expected {list(expected)} for rank {rank}"
            )
        if not _is_finite(tensor):
            raise InvalidAdapter(f"{tensor.name} holds NaN or infinite values")


def _is_finite(tensor: Tensor) -> bool:
    view, exponent = _DTYPES[tensor.dtype]
    return all_finite(tensor.data.view(view), exponent)


def _check_place(name: str, parsed: TensorName, model: ModelConfig) -> None:
    (layer, module), part = parsed.key, parsed.part
    if part is None:
        return
    if module not in LINEARS[part]:
        accepted = ", ".join(model.linear_shapes())
        raise InvalidAdapter(
            f"{name}: {part}.{module} is not a linear layer of this base; accepted: {accepted}"
        )
    if layer >= model.num_layers:
        raise InvalidAdapter(f"{name}: the base has {model.num_layers} layers, 0 to {model.num_layers - 1}")


def _not_lora(tensor: Tensor, model: ModelConfig) -> str:
    name = tensor.name
    if name in _BASE_COPIES:
        expected = [model.vocab_size, model.hidden_size]
        shape = list(tensor.shape)
        return f"{name} has shape {shape}, expected {expected}: changed vocabularies are not supported"
    if "lora_embedding_" in name or "embed_tokens" in name:
        return f"{name} adapts an embedding, which is not supported; accepted: linear layers"
    if "lora_magnitude_vector" in name:
        return f"{name}: DoRA is not supported"
    if name.endswith(".bias"):
        return f"{name}: trained biases are not supported"
    return (
        f"{name} is not a LoRA tensor of a linear layer; accepted: "
        "base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight and the like"
    )[:600]
