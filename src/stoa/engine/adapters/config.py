"""Parses adapter_config.json and refuses, by name, what Stoa would not compute as PEFT does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stoa.engine.adapters.names import CONFIG_FILE, missing
from stoa.errors import InvalidAdapter

_Value = TypeVar("_Value")

_MAX_BYTES = 1_000_000
_MAX_PATTERNS = 10_000

# What PEFT targets when target_modules is null, for all families that Stoa serves.
_DEFAULT_TARGETS = ("q_proj", "v_proj")

_UNDERSTOOD = (
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "bias",
)  # fmt: skip
# These say how it was trained or by whom; they do not change its arithmetic.
_NEUTRAL = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
    "velora_config", "megatron_core", "qalora_group_size",
)  # fmt: skip
# Known to PEFT, not to Stoa: refused unless off. Key -> what it is.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias on lora_B",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "Monte Carlo LoRA",
    "kasa_config": "KaSA",
    "ensure_weight_tying": "adapters tied to the embedding",
}
# These initializations also change the base weights, or the forward pass.
_BASE_CHANGING_INIT = ("pissa", "olora", "corda", "mica")


@dataclass(frozen=True)
class LoraConfig:
    """The parts of adapter_config.json that decide what is computed."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: str | tuple[str, ...]  # a regular expression, or module names
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_config(folder: Path) -> LoraConfig:
    """Raises InvalidAdapter with the reason."""
    raw = _read_raw(folder / CONFIG_FILE)
    _refuse_unsupported(raw)
    layers = _layers(raw.get("layers_to_transform"))
    targets = _DEFAULT_TARGETS if raw.get("target_modules") is None else _names(raw, "target_modules")
    if layers is not None and isinstance(targets, str):
        raise InvalidAdapter("layers_to_transform needs target_modules to be a list, as in PEFT")
    return LoraConfig(
        rank=_rank(raw.get("r", 8), "r"),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha"),
        rslora=_flag(raw, "use_rslora"),
        rank_pattern=_patterns(raw, "rank_pattern", _rank),
        alpha_pattern=_patterns(raw, "alpha_pattern", _number),
        targets=targets,
        excluded=_names(raw, "exclude_modules"),
        layers=layers,
        layers_patterns=_layers_patterns(raw.get("layers_pattern")),
    )


def _read_raw(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise missing(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InvalidAdapter(f"{path} is too large; at most {_MAX_BYTES} bytes are accepted")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidAdapter(f"{path} must hold a JSON object")
    return raw


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Refuses, by name, every setting that would change the arithmetic."""
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type {raw.get('peft_type')!r} is not supported; accepted: 'LORA'")
    if raw.get("bias", "none") != "none":
        raise InvalidAdapter(f"bias {raw['bias']!r} (trained biases) is not supported; accepted: 'none'")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INIT):
        raise InvalidAdapter(
            f"init_lora_weights {init!r} changes the base weights; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    for name, value in raw.items():
        if not value or name in _NEUTRAL or name in _UNDERSTOOD:
            continue
        if name in _UNSUPPORTED:
            raise InvalidAdapter(f"{name} ({_UNSUPPORTED[name]}) is not supported; it must be off")
        raise InvalidAdapter(f"{CONFIG_FILE}: the setting {name!r} is unknown; it must be absent or off")


def _rank(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidAdapter(f"{name} must be a rank of at least 1, not {value!r}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise InvalidAdapter(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if not isinstance(value, bool | None):
        raise InvalidAdapter(f"{name} must be true or false, not {value!r}")
    return bool(value)


def _patterns(raw: Mapping[str, Any], name: str, check: Callable[[Any, str], _Value]) -> dict[str, _Value]:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{name} must be an object from module names to numbers")
    if len(value) > _MAX_PATTERNS:
        raise InvalidAdapter(f"{name} has {len(value)} entries; at most {_MAX_PATTERNS} are accepted")
    return {k: check(v, f"{name}[{k!r}]") for k, v in value.items()}


def _names(raw: Mapping[str, Any], name: str) -> str | tuple[str, ...]:
    """A regular expression as text, or module names as a tuple."""
    value = raw.get(name) or ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise InvalidAdapter(f"{name} must be a list of module names or a regular expression")
    for module in value:
        if name == "target_modules" and module.rsplit(".", 1)[-1] == "embed_tokens":
            raise InvalidAdapter(
                f"target_modules names {module!r}, which is an embedding; accepted: linear layers"
            )
    return tuple(value)


def _layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in layers):
        raise InvalidAdapter(f"layers_to_transform must be layer numbers, not {value!r}")
    return frozenset(layers)


def _layers_patterns(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InvalidAdapter(f"layers_pattern must be a name or a list of names, not {value!r}")
    return tuple(n for n in names if n)
