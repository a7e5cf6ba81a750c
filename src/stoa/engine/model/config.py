"""What a Hugging Face `config.json` says, checked and reduced to what the decoder needs.

Everything the engine does not implement is refused here by name, before a weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoa.errors import InvalidModel, UnsupportedModel

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_MAX_HEAD_DIM = 1024
_LIMITS = {"num_hidden_layers": 10_000, "max_position_embeddings": 1 << 27}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor"},
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. `type` is one of ROPE_TYPES; `params` are that type's own keys as published."""

    theta: float
    type: str = "default"
    params: Mapping[str, float | bool | None] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family. Sizes are counts of elements."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_eps: float
    rope: RopeConfig
    max_position: int
    tied_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]  # per layer: 0 = full attention, w = sliding window of w positions
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of a decoder block, by its Hugging Face name, and of lm_head."""
        h, i = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (self.q_size, h),
            "k_proj": (self.kv_size, h),
            "v_proj": (self.kv_size, h),
            "o_proj": (h, self.q_size),
            "gate_proj": (i, h),
            "up_proj": (i, h),
            "down_proj": (h, i),
            "lm_head": (self.vocab_size, h),
        }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InvalidModel if it is missing, not UTF-8, not JSON or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidModel(f"{path} does not exist; a model folder needs {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidModel(f"{path} must hold a JSON object")
    return value


def read_model_config(folder: Path) -> ModelConfig:
    """Reads and checks `config.json` (and the end tokens of `generation_config.json`)."""
    raw = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") if generation.exists() else None
    return parse_model_config(raw, eos_override=eos)


def parse_model_config(raw: Mapping[str, Any], *, eos_override: Any = None) -> ModelConfig:
    """`raw` is a parsed config.json. Raises UnsupportedModel naming the first thing not implemented."""
    family = _family(raw)
    size = _SizeReader(raw)
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", hidden // heads)
    layers = size("num_hidden_layers")
    if heads % kv_heads:
        raise InvalidModel(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        )
    if head_dim % 2 or head_dim > _MAX_HEAD_DIM:
        raise UnsupportedModel(f"head_dim {head_dim} is not supported; accepted: even, up to {_MAX_HEAD_DIM}")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModel(f"hidden_act {raw['hidden_act']!r} is not supported; accepted: 'silu'")
    if (quantized := raw.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedModel(f"pre-quantized weights ({method}) are not supported; give bf16, fp16 or fp32")
    vocab_size = size("vocab_size")
    own_ends = _token_ids(raw.get("eos_token_id"), "eos_token_id", vocab_size)
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw, head_dim),
        max_position=size("max_position_embeddings", 2048),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=True if family == "qwen2" else attention_bias,
        o_bias=False if family == "qwen2" else attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        windows=_windows(raw, family, layers),
        eos_token_ids=_token_ids(eos_override, "eos_token_id", vocab_size) or own_ends,
        bos_token_id=next(iter(_token_ids(raw.get("bos_token_id"), "bos_token_id", vocab_size)), None),
    )


class _SizeReader:
    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise InvalidModel(f"config.json has no {key}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not 0 < value <= _LIMITS.get(key, 1 << 31)
        ):
            raise InvalidModel(
                f"config.json: {key} must be an integer from 1 to {_LIMITS.get(key, 1 << 31)}, not {value!r:.100}"
            )
        return value


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidModel(f"config.json: {key} must be a positive number, not {value!r:.100}")
    return float(value)


def _family(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InvalidModel(f"config.json: architectures must be a list of names, not {names!r:.100}")
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and raw.get("model_type") in ARCHITECTURES.values():
        return str(raw["model_type"])
    asked = ", ".join(names) or raw.get("model_type") or "nothing"
    raise UnsupportedModel(f"architecture {asked} is not supported; accepted: {', '.join(ARCHITECTURES)}")


def _rope(raw: Mapping[str, Any], head_dim: int) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise InvalidModel(f"config.json: rope scaling must be an object, not {given!r:.100}")
    params = dict(given)
    theta = _number(
        {"rope_theta": params.pop("rope_theta", None) or raw.get("rope_theta") or 1e4}, "rope_theta", 1e4
    )
    kind = params.pop("rope_type", None) or params.pop("type", None) or "default"
    params.pop("type", None)
    partial = params.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor {partial} is not supported; accepted: 1.0")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise UnsupportedModel(
            f"rope scaling {kind!r:.100} is not supported; accepted: {', '.join(ROPE_TYPES)}"
        )
    missing = _ROPE_KEYS[kind] - params.keys()
    if missing:
        raise InvalidModel(f"rope scaling {kind!r} needs {', '.join(sorted(missing))}")
    if kind == "yarn" and not params.get("original_max_position_embeddings"):
        params["original_max_position_embeddings"] = raw.get("max_position_embeddings", 2048)
    for key, value in params.items():
        if not isinstance(value, bool | None):
            _number(params, key, 1.0)
    return RopeConfig(theta=theta, type=kind, params=params)


def _windows(raw: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    """Sliding windows per layer, as each family states them."""
    window = raw.get("sliding_window")
    if family == "llama" or not window:
        return (0,) * layers
    window = _SizeReader(raw)("sliding_window")
    types = raw.get("layer_types")
    if types:
        if not isinstance(types, list) or not all(isinstance(t, str) for t in types):
            raise InvalidModel(f"config.json: layer_types must be a list of names, not {types!r:.100}")
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedModel(f"layer_types {', '.join(sorted(unknown))} are not supported")
        if len(types) != layers:
            raise InvalidModel(f"layer_types lists {len(types)} layers, num_hidden_layers says {layers}")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    if family == "mistral":
        return (window,) * layers
    if not raw.get("use_sliding_window", False):
        return (0,) * layers
    first = raw.get("max_window_layers", layers)
    if not isinstance(first, int):
        raise InvalidModel(f"config.json: max_window_layers must be an integer, not {first!r:.100}")
    return tuple(window if i >= first else 0 for i in range(layers))


def _token_ids(value: Any, key: str, vocab_size: int) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size:
            raise InvalidModel(f"{key} must be token ids below vocab_size {vocab_size}, not {i!r:.100}")
    return tuple(ids)
