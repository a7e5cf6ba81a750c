"""What PEFT calls things: the files of an adapter folder, modules of the base model, tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from stoa.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LM_HEAD = -1  # layer number of lm_head
LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}

Key = tuple[int, str]  # (layer, module)

_TENSOR = re.compile(
    r"base_model\.model\.(?:model\.layers\.(?P<layer>\d{1,6})\.(?P<part>self_attn|mlp)\.(?P<module>\w+)|(?P<head>lm_head))"
    r"\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)


class TensorName(NamedTuple):
    """A LoRA tensor's name, parsed but not yet checked against a base model."""

    key: Key
    part: str | None  # of the layer: self_attn or mlp; None for lm_head
    side: str  # A or B


def parse_tensor_name(name: str) -> TensorName | None:
    """None if it is not the name of a LoRA tensor of a linear layer."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        return None
    key = (LM_HEAD, "lm_head") if match["head"] else (int(match["layer"]), match["module"])
    return TensorName(key, match["part"], match["side"])


def module_name(key: Key) -> str:
    """The module's name inside the base model, as PEFT's patterns see it."""
    layer, module = key
    if layer == LM_HEAD:
        return module
    return f"model.layers.{layer}.{'self_attn' if module in LINEARS['self_attn'] else 'mlp'}.{module}"


def missing(path: Path) -> InvalidAdapter:
    return InvalidAdapter(f"{path} does not exist; an adapter folder needs {CONFIG_FILE} and {WEIGHTS_FILE}")
