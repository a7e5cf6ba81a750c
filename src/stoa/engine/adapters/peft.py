"""Reads PEFT LoRA folders: `adapter_config.json` and `adapter_model.safetensors`.

An adapter comes from a tenant, so nothing in it is trusted: what PEFT would compute otherwise than
`y += scale * (x Aᵀ) Bᵀ` on the linear layers is refused by name, and weights are read as plain bytes.
Checking needs no torch, so that gateways can do it; only `load_pairs` imports it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stoa.engine.model.config import ModelConfig
from stoa.errors import InvalidAdapter

if TYPE_CHECKING:
    from stoa.engine.kernels.interface import LoraPair

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LM_HEAD = -1  # layer number of lm_head

Key = tuple[int, str]  # (layer, module)

_MAX_CONFIG_BYTES = 1_000_000
_MAX_HEADER_BYTES = 64_000_000
_MATCH_TIMEOUT_S = 5.0
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")

# What PEFT targets when target_modules is null, for all families that Stoa serves.
_DEFAULT_TARGETS = ("q_proj", "v_proj")

# Keys of adapter_config.json that say how it was trained or by whom; they do not change its arithmetic.
_NEUTRAL = frozenset(
    (
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
        "velora_config", "megatron_core", "qalora_group_size",
    )
)  # fmt: skip
_UNDERSTOOD = frozenset(
    (
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "bias",
    )
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

# dtype -> (numpy view, bits of the exponent): all exponent bits set means NaN or infinity.
_DTYPES: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

_TENSOR = re.compile(
    r"base_model\.model\.(?:model\.layers\.(?P<layer>\d{1,6})\.(?P<part>self_attn|mlp)\.(?P<module>\w+)|(?P<head>lm_head))"
    r"\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)
# PEFT saves the untrained embeddings too when lm_head is targeted.
_BASE_COPIES = frozenset(
    ("base_model.model.lm_head.base_layer.weight", "base_model.model.model.embed_tokens.weight")
)


@dataclass(frozen=True)
class LoraShape:
    """One module's adapter: y += scale * (x Aᵀ) Bᵀ with A [rank, in] and B [out, rank]."""

    rank: int
    scale: float


@dataclass(frozen=True)
class AdapterSpec:
    """A checked adapter folder. `id` names its content: ranks, scales and weights."""

    id: str  # sha256, hex
    path: Path
    modules: Mapping[Key, LoraShape]  # layer is LM_HEAD for lm_head
    nbytes: int  # of the A and B tensors
    max_rank: int


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies in the safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    nbytes: int


def read_adapter(folder: Path, model: ModelConfig, *, max_rank: int) -> AdapterSpec:
    """Reads and checks `folder`, weights too, against `model`. Raises InvalidAdapter with the reason."""
    folder = Path(folder)
    config = _read_config(folder)
    data = _map_weights(folder)
    tensors = _read_index(folder, data)
    pairs = _pair_up(tensors, model)
    shapes = _resolve(config, list(pairs), model, max_rank)
    for key, (a, b) in pairs.items():
        _check_pair(key, a, b, shapes[key].rank, model, data)
    return AdapterSpec(
        id=_content_id(shapes, data),
        path=folder,
        modules=shapes,
        nbytes=sum(a.nbytes + b.nbytes for a, b in pairs.values()),
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
            names = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                match = _TENSOR.fullmatch(name)
                if match:
                    names[_key_of(match), match["side"]] = name
            for key, shape in spec.modules.items():
                a, b = (file.get_tensor(names[key, side]) for side in "AB")
                pairs[key] = LoraPair(a=a, b=b, scale=shape.scale)
    except (OSError, KeyError, SafetensorError) as error:
        raise InvalidAdapter(f"{spec.path / WEIGHTS_FILE} cannot be read any more: {error}") from None
    return pairs


# -- adapter_config.json


@dataclass(frozen=True)
class _Config:
    """The parts of adapter_config.json that decide what is computed."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _read_config(folder: Path) -> _Config:
    raw = _read_raw_config(folder / CONFIG_FILE)
    _refuse_unsupported(raw)
    layers = _layers(raw.get("layers_to_transform"))
    targets = _names(raw, "target_modules")
    if layers is not None and isinstance(targets, str):
        raise InvalidAdapter("layers_to_transform needs target_modules to be a list, as in PEFT")
    return _Config(
        rank=_rank(raw.get("r", 8), "r"),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha"),
        rslora=_flag(raw, "use_rslora"),
        rank_pattern={k: _rank(v, f"rank_pattern[{k!r}]") for k, v in _patterns(raw, "rank_pattern").items()},
        alpha_pattern={
            k: _number(v, f"alpha_pattern[{k!r}]") for k, v in _patterns(raw, "alpha_pattern").items()
        },
        targets=_DEFAULT_TARGETS if targets == () and raw.get("target_modules") is None else targets,
        excluded=_names(raw, "exclude_modules"),
        layers=layers,
        layers_patterns=_layers_patterns(raw.get("layers_pattern")),
    )


def _read_raw_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _missing(path)
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{path} is too large; at most {_MAX_CONFIG_BYTES} bytes are accepted")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidAdapter(f"{path} must hold a JSON object")
    return raw


def _missing(path: Path) -> InvalidAdapter:
    return InvalidAdapter(f"{path} does not exist; an adapter folder needs {CONFIG_FILE} and {WEIGHTS_FILE}")


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Refuses, by name, every setting that would change the arithmetic."""
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type {raw.get('peft_type')!r} is not supported; accepted: 'LORA'")
    if raw.get("bias", "none") != "none":
        raise InvalidAdapter(f"bias {raw['bias']!r} (trained biases) is not supported; accepted: 'none'")
    init = raw.get("init_lora_weights", True)
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
    value = raw.get(name, False)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidAdapter(f"{name} must be true or false, not {value!r}")


def _patterns(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{name} must be an object from module names to numbers")
    return value


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


# -- which modules, with which rank and scale


def module_name(key: Key) -> str:
    """The module's name inside the base model, as PEFT's patterns see it."""
    layer, module = key
    if layer == LM_HEAD:
        return module
    return f"model.layers.{layer}.{'self_attn' if module in _ATTENTION else 'mlp'}.{module}"


def _resolve(config: _Config, keys: Sequence[Key], model: ModelConfig, max_rank: int) -> dict[Key, LoraShape]:
    """What PEFT computes for each module that has tensors; refuses those it would ignore."""
    names = [module_name(key) for key in keys]
    targeted = _targeted(config, names)
    ranks = _by_pattern(config.rank_pattern, names, "rank_pattern")
    alphas = _by_pattern(config.alpha_pattern, names, "alpha_pattern")
    shapes = {}
    for key, name, target, own_rank, own_alpha in zip(keys, names, targeted, ranks, alphas, strict=True):
        if not target:
            raise InvalidAdapter(
                f"there are tensors for {name}, which target_modules, exclude_modules or layers_to_transform "
                f"leave out; target_modules: {config.targets!r}"[:500]
            )
        rank = config.rank if own_rank is None else own_rank
        if rank > max_rank:
            raise InvalidAdapter(
                f"{name} has rank {rank}; at most {max_rank} is accepted (engine setting max_lora_rank)"
            )
        shapes[key] = LoraShape(rank, config.scale(rank, config.alpha if own_alpha is None else own_alpha))
    return shapes


def _targeted(config: _Config, names: Sequence[str]) -> list[bool]:
    """PEFT's choice of modules: exclusion first, then target_modules, then layers, which do
    not bind modules named in full."""
    targets = config.targets
    excluded = _named(config.excluded, names, "exclude_modules")
    if isinstance(targets, str):
        everything = targets.lower() == "all-linear"
        chosen = [n != "lm_head" for n in names] if everything else _named(targets, names, "target_modules")
    else:
        inside = _in_layers(config, names)
        chosen = _named(targets, names, "target_modules")
        chosen = [c and (i or n in targets) for c, i, n in zip(chosen, inside, names, strict=True)]
    return [c and not e for c, e in zip(chosen, excluded, strict=True)]


def _named(wanted: str | tuple[str, ...], names: Sequence[str], field: str) -> list[bool]:
    if isinstance(wanted, str):
        return _match_all([wanted], names, field)[0]
    return [any(name == w or name.endswith(f".{w}") for w in wanted) for name in names]


def _in_layers(config: _Config, names: Sequence[str]) -> list[bool]:
    """Is the module's layer among layers_to_transform? Modules outside the layers are not."""
    layers = config.layers
    if layers is None:
        return [True] * len(names)
    if config.layers_patterns and "layers" not in config.layers_patterns:
        raise InvalidAdapter(
            f"layers_pattern {config.layers_patterns!r} is not supported; accepted: 'layers'"
        )
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in names)
    return [match is not None and int(match[1]) in layers for match in found]


def _by_pattern(patterns: Mapping[str, Any], names: Sequence[str], field: str) -> list[Any]:
    """For each name the value of the first pattern that fits its end at a dot, or None."""
    if not patterns:
        return [None] * len(names)
    fits = _match_all([_END_OF_NAME % p for p in patterns], names, field)
    values = list(patterns.values())
    return [next((v for v, fit in zip(values, fits, strict=True) if fit[i]), None) for i in range(len(names))]


_END_OF_NAME = r"(.*\.)?(%s)$"
_REPEATS = re.compile(r"(?<!\\)(?<!\()[*+?{]")  # escaped signs and "(?:" repeat nothing


def _match_all(patterns: Sequence[str], names: Sequence[str], field: str) -> list[list[bool]]:
    """[pattern][name]: does all of the name match? Tenants' expressions could run for ever, so all but
    simple ones are tried in a process of their own, for a limited time."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidAdapter(f"{field} holds a malformed regular expression: {error}") from None
    if all(map(_is_simple, patterns)):
        return [[re.fullmatch(p, n) is not None for n in names] for p in patterns]
    return _match_apart(patterns, names, field)


def _is_simple(pattern: str) -> bool:
    """No repetition and few alternatives: matching ends soon, whatever the pattern."""
    own = pattern.removeprefix(_END_OF_NAME.partition("(%s")[0])
    return _REPEATS.search(own) is None and own.count("|") <= 8


_MATCH_PROGRAM = (
    "import json, re, sys; patterns, names = json.load(sys.stdin); "
    "json.dump([[re.fullmatch(p, n) is not None for n in names] for p in patterns], sys.stdout)"
)


def _match_apart(patterns: Sequence[str], names: Sequence[str], field: str) -> list[list[bool]]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH_PROGRAM],
            input=json.dumps([patterns, names]),
            capture_output=True,
            check=True,
            text=True,
            timeout=_MATCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InvalidAdapter(
            f"{field}: its regular expressions take over {_MATCH_TIMEOUT_S:g} s to match"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise InvalidAdapter(f"{field}: its regular expressions cannot be matched: {error}") from None
    result: list[list[bool]] = json.loads(done.stdout)
    return result


# -- adapter_model.safetensors


def _map_weights(folder: Path) -> NDArray[np.uint8]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
        if not pickles:
            raise _missing(path)
        raise InvalidAdapter(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when read; "
            f"accepted: {WEIGHTS_FILE} (safetensors)"
        )
    if path.stat().st_size < 8:
        raise InvalidAdapter(f"{path} is truncated: it has {path.stat().st_size} bytes")
    return np.memmap(path, dtype=np.uint8, mode="r")


def _read_index(folder: Path, data: NDArray[np.uint8]) -> list[_Tensor]:
    """The file's tensors. The library checks the layout (bounds, overlaps), which the header then tells."""
    path = folder / WEIGHTS_FILE
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
    return [
        _Tensor(name, t["dtype"], tuple(t["shape"]), 8 + header + t["data_offsets"][0], _extent(t))
        for name, t in listed.items()
    ]


def _extent(entry: Mapping[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end - start)


def _key_of(match: re.Match[str]) -> Key:
    return (LM_HEAD, "lm_head") if match["head"] else (int(match["layer"]), match["module"])


def _pair_up(tensors: Iterable[_Tensor], model: ModelConfig) -> dict[Key, tuple[_Tensor, _Tensor]]:
    """A and B of every module, in the order of layers. Refuses tensors that belong to no such pair."""
    sides: dict[Key, dict[str, _Tensor]] = {}
    for tensor in tensors:
        if tensor.name in _BASE_COPIES and tensor.shape == (model.vocab_size, model.hidden_size):
            continue
        match = _TENSOR.fullmatch(tensor.name)
        if match is None:
            raise InvalidAdapter(_not_lora(tensor, model))
        key = _key_of(match)
        _check_place(tensor.name, key, match["part"], model)
        if sides.setdefault(key, {}).setdefault(match["side"], tensor) is not tensor:
            raise InvalidAdapter(f"{module_name(key)} has two tensors for lora_{match['side']}")
    if not sides:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds no LoRA tensors")
    for key, found in sides.items():
        if len(found) == 1:
            has = next(iter(found))
            raise InvalidAdapter(
                f"{module_name(key)} has lora_{has} but no lora_{'B' if has == 'A' else 'A'}"
            )
    return {key: (sides[key]["A"], sides[key]["B"]) for key in sorted(sides)}


def _not_lora(tensor: _Tensor, model: ModelConfig) -> str:
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


def _check_place(name: str, key: Key, part: str | None, model: ModelConfig) -> None:
    layer, module = key
    if layer == LM_HEAD:
        return
    if module not in (_ATTENTION if part == "self_attn" else _MLP):
        accepted = ", ".join((*_ATTENTION, *_MLP, "lm_head"))
        raise InvalidAdapter(
            f"{name}: {part}.{module} is not a linear layer of this base; accepted: {accepted}"
        )
    if layer >= model.num_layers:
        raise InvalidAdapter(f"{name}: the base has {model.num_layers} layers, 0 to {model.num_layers - 1}")


def _check_pair(
    key: Key, a: _Tensor, b: _Tensor, rank: int, model: ModelConfig, data: NDArray[np.uint8]
) -> None:
    outs, ins = model.linear_shapes()[key[1]]
    for tensor, expected in ((a, (rank, ins)), (b, (outs, rank))):
        if tensor.dtype not in _DTYPES:
            raise InvalidAdapter(f"{tensor.name} has dtype {tensor.dtype}; accepted: F32, F16, BF16")
        if tensor.shape != expected:
            raise InvalidAdapter(
                f"{tensor.name} has shape {list(tensor.shape)}, expected {list(expected)} for rank {rank}"
            )
        if not _is_finite(tensor, data):
            raise InvalidAdapter(f"{tensor.name} holds NaN or infinite values")


def _is_finite(tensor: _Tensor, data: NDArray[np.uint8]) -> bool:
    view, exponent = _DTYPES[tensor.dtype]
    bits = data[tensor.start : tensor.start + tensor.nbytes].view(view)
    mask = view(exponent)
    return not bool(((bits & mask) == mask).any())


def _content_id(shapes: Mapping[Key, LoraShape], data: NDArray[np.uint8]) -> str:
    facts = [[layer, module, s.rank, s.scale] for (layer, module), s in sorted(shapes.items())]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(data)  # type: ignore[arg-type]  # a buffer
    return digest.hexdigest()
