"""Reads PEFT LoRA folders: `adapter_config.json` and `adapter_model.safetensors`.

An adapter comes from a tenant, so nothing in it is trusted: what PEFT would compute otherwise than
`y += scale * (x Aᵀ) Bᵀ` on the linear layers is refused by name, and weights are read as plain bytes.
Checking needs no torch, so that gateways can do it; only `load_pairs` imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stoa.engine.adapters.config import read_config
from stoa.engine.adapters.names import WEIGHTS_FILE, Key, parse_tensor_name
from stoa.engine.adapters.targets import LoraShape, resolve
from stoa.engine.adapters.weights import check_pair, list_tensors, map_weights, pair_up
from stoa.engine.model.config import ModelConfig
from stoa.errors import InvalidAdapter

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


def read_adapter(folder: Path, model: ModelConfig, *, max_rank: int) -> AdapterSpec:
    """Reads and checks `folder`, weights too, against `model`. Raises InvalidAdapter with the reason."""
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    config = read_config(folder)
    data = map_weights(weights)
    pairs = pair_up(list_tensors(weights, data), model)
    shapes = resolve(config, pairs, max_rank)
    linears = model.linear_shapes()
    for key, (a, b) in pairs.items():
        check_pair(a, b, shapes[key].rank, linears[key[1]])
    return AdapterSpec(
        id=_content_id(shapes, data),
        path=folder,
        modules=shapes,
        nbytes=sum(tensor.data.nbytes for pair in pairs.values() for tensor in pair),
        max_rank=max(shape.rank for shape in shapes.values()),
    )


def load_pairs(spec: AdapterSpec, *, expected_id: str | None = None) -> dict[Key, LoraPair]:
    """The tensors of a checked adapter, in the dtype of the file and mapped from it, not copied.
    With `expected_id`, raises InvalidAdapter if the folder no longer holds that content."""
    from stoa.engine.kernels.interface import LoraPair  # imports torch, which only engines need

    if expected_id is not None and spec.id != expected_id:
        raise InvalidAdapter(f"{spec.path} has changed since it was registered; register it again")
    pairs = {}
    try:
        with safe_open(spec.path / WEIGHTS_FILE, framework="pt") as file:
            parsed = {name: parse_tensor_name(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            names = {(t.key, t.side): name for name, t in parsed.items() if t}
            for key, shape in spec.modules.items():
                a, b = (file.get_tensor(names[key, side]) for side in "AB")
                pairs[key] = LoraPair(a=a, b=b, scale=shape.scale)
    except (OSError, KeyError, SafetensorError) as error:
        raise InvalidAdapter(f"{spec.path / WEIGHTS_FILE} cannot be read any more: {error}") from None
    return pairs


def _content_id(shapes: Mapping[Key, LoraShape], data: NDArray[np.uint8]) -> str:
    facts = [[layer, module, s.rank, s.scale] for (layer, module), s in sorted(shapes.items())]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(data)  # type: ignore[arg-type]  # a buffer
    return digest.hexdigest()
