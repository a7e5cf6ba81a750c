"""Reads PEFT LoRA folders: `adapter_config.json` and `adapter_model.safetensors`.

An adapter comes from a tenant, so nothing in it is trusted: what PEFT would compute otherwise than
`y += scale * (x Aᵀ) Bᵀ` on the linear layers is refused by name, and weights are read as plain bytes.
Checking needs no torch, so that gateways can do it; only `load_pairs` imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stoa.engine.adapters.config import read_config
from stoa.engine.adapters.names import WEIGHTS_FILE, Key
from stoa.engine.adapters.targets import LoraShape, resolve
from stoa.engine.adapters.weights import Tensor, check_pair, list_tensors, map_weights, pair_up
from stoa.engine.model.config import ModelConfig
from stoa.errors import InvalidAdapter, StoaError

if TYPE_CHECKING:
    from stoa.engine.kernels.interface import LoraPair


@dataclass(frozen=True)
class AdapterSpec:
    """A checked adapter folder. `id` names its content: ranks, scales and weights."""

    id: str  # sha256, hex
    path: Path
    modules: Mapping[Key, LoraShape]  # layer is LM_HEAD for lm_head
    nbytes: int  # of the A and B tensors
    max_rank: int
    tensors: Mapping[Key, tuple[Tensor, Tensor]] = field(repr=False, compare=False)  # A and B, mapped


def read_adapter(folder: Path, model: ModelConfig, *, max_rank: int) -> AdapterSpec:
    """Reads and checks `folder`, weights too, against `model`. Raises InvalidAdapter with the reason."""
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    config = read_config(folder)
    data = map_weights(weights)
    with ThreadPoolExecutor(
        1
    ) as beside:  # the hash is most of the work, and takes the file as it comes from disk
        hashing = beside.submit(hashlib.sha256, data.data)
        pairs = pair_up(list_tensors(weights, data), model)
        shapes = resolve(config, pairs, max_rank)
        linears = model.linear_shapes()
        for key, (a, b) in pairs.items():
            check_pair(a, b, shapes[key].rank, linears[key[1]])
    return AdapterSpec(
        id=_content_id(hashing.result(), shapes),
        path=folder,
        modules=shapes,
        nbytes=sum(tensor.data.nbytes for pair in pairs.values() for tensor in pair),
        max_rank=max(shape.rank for shape in shapes.values()),
        tensors=pairs,
    )


def load_pairs(spec: AdapterSpec, *, expected_id: str | None = None) -> dict[Key, LoraPair]:
    """The tensors of a checked adapter, in the dtype of the file and mapped from it, not copied.
    With `expected_id`, raises InvalidAdapter if that is not what the folder held when it was read."""
    import torch  # which only engines need

    from stoa.engine.kernels.interface import LoraPair

    if expected_id is not None and spec.id != expected_id:
        raise InvalidAdapter(f"{spec.path} has changed since it was registered; register it again")
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

    def whole(tensor: Tensor) -> torch.Tensor:
        return torch.from_numpy(tensor.data).view(dtypes[tensor.dtype]).view(tensor.shape)

    return {
        key: LoraPair(a=whole(a), b=whole(b), scale=spec.modules[key].scale)
        for key, (a, b) in spec.tensors.items()
    }


def load_adapter(folder: Path, content_id: str, model: ModelConfig, *, max_rank: int) -> dict[Key, LoraPair]:
    """What the folder holds, if it is what `content_id` names. Raises a StoaError with code `invalid_adapter`."""
    try:
        return load_pairs(read_adapter(folder, model, max_rank=max_rank), expected_id=content_id)
    except OSError as error:
        raise StoaError(f"adapter folder cannot be read: {error}", code="invalid_adapter") from error


def _content_id(weights: hashlib._Hash, shapes: Mapping[Key, LoraShape]) -> str:
    facts = [[layer, module, s.rank, s.scale] for (layer, module), s in sorted(shapes.items())]
    weights.update(json.dumps(facts).encode())
    return weights.hexdigest()
