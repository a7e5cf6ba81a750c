"""What of a model decides how fast it is and what it takes, from its Hugging Face `config.json`; by name: `catalog`.

The engine's own reader (`engine/model/config.py`) refuses what the engine does not run. A plan may be about other
engines and about models with experts, and only needs sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from stoa.errors import ConfigError

_DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
_QUANTIZED_BYTES = {"fp8": 1.0, "fbgemm_fp8": 1.0, "mxfp4": 0.53, "bitsandbytes": 0.55}
_SCALES = 1.06  # of packed integers: scales and zeros of their groups come on top


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of parameters; those of one layer times `layers`, and the embeddings."""

    name: str
    parameters: float  # that lie in memory
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    row_parameters: float | None = (
        None  # that a row is multiplied by; None: all. Experts a row is not sent to, embeddings: not
    )
    step_parameters: float | None = None  # that a step reads; None: all
    weight_bytes: float = 2.0  # each

    @property
    def weights_gib(self) -> float:
        return self.parameters * self.weight_bytes / (1 << 30)

    @property
    def kv_token_bytes(self) -> float:
        """Keys and values of a token, all layers, in 16 bits."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def in_row(self) -> float:
        return self.parameters if self.row_parameters is None else self.row_parameters

    @property
    def in_step(self) -> float:
        return self.parameters if self.step_parameters is None else self.step_parameters


def decoder(
    name: str,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    head_dim: int = 0,
    tied: bool = False,
    experts: int = 1,
    experts_used: int = 1,
    weight_bytes: float = 2.0,
) -> ModelShape:
    """A decoder of the Llama family, or with experts in place of each MLP (`intermediate` is then one expert's). Norms and
    biases are left out (below 0.1 %)."""
    head_dim = head_dim or hidden // heads
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    expert = 3 * hidden * intermediate
    router = hidden * experts if experts > 1 else 0
    in_layers = layers * (attention + router + experts * expert)
    embedding = vocab * hidden
    return ModelShape(
        name=name,
        parameters=in_layers + embedding * (1 if tied else 2),
        layers=layers, hidden=hidden, kv_heads=kv_heads, head_dim=head_dim,
        row_parameters=layers * (attention + router + experts_used * expert),
        step_parameters=in_layers + embedding,
        weight_bytes=weight_bytes,
    )  # fmt: skip


# -- config.json


class _Quantization(msgspec.Struct):
    quant_method: str = ""
    bits: int | None = None


class _Config(msgspec.Struct):
    """The keys that matter, under the names that model families use."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    vocab_size: int | None = None
    intermediate_size: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    quantization_config: _Quantization | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    n_shared_experts: int | None = None
    kv_lora_rank: int | None = None
    text_config: _Config | None = None  # of models that see as well


def read_shape(path: Path, name: str = "") -> ModelShape:
    """`path`: a config.json, or the folder it is in. ConfigError says what is missing or cannot be described."""
    path = path / "config.json" if path.is_dir() else path
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="model") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}; accepted: a Hugging Face config.json", param="model") from None
    if config.hidden_size is None and config.text_config is not None:
        config = config.text_config
    return _shape(config, name or path.parent.name, str(path))


def _shape(config: _Config, name: str, where: str) -> ModelShape:
    if config.kv_lora_rank or config.n_shared_experts or config.shared_expert_intermediate_size:
        raise ConfigError(
            f"{where}: latent attention and shared experts are not described; give the model's facts instead",
            param="model",
        )

    def size(key: str, default: int | None = None) -> int:
        value = getattr(config, key) if getattr(config, key) is not None else default
        if value is None or not 0 < value < 1 << 31:
            raise ConfigError(f"{where}: {key} is {value}; accepted: 1 or above", param="model")
        return int(value)

    heads = size("num_attention_heads")
    experts = config.num_experts or config.num_local_experts or 1
    expert_size = (
        "moe_intermediate_size" if experts > 1 and config.moe_intermediate_size else "intermediate_size"
    )
    return decoder(
        name,
        layers=size("num_hidden_layers"), hidden=size("hidden_size"), intermediate=size(expert_size),
        heads=heads, kv_heads=size("num_key_value_heads", heads), vocab=size("vocab_size"),
        head_dim=config.head_dim or 0, tied=config.tie_word_embeddings,
        experts=experts, experts_used=size("num_experts_per_tok") if experts > 1 else 1,
        weight_bytes=_weight_bytes(config, where),
    )  # fmt: skip


def _weight_bytes(config: _Config, where: str) -> float:
    quantized = config.quantization_config
    if quantized is not None:
        known = _QUANTIZED_BYTES.get(quantized.quant_method)
        if quantized.bits in (2, 3, 4, 8):
            known = quantized.bits / 8 * _SCALES
        if known is None:
            raise ConfigError(
                f"{where}: what a weight takes in {quantized.quant_method or 'this quantization'!r} is not known; "
                f"accepted: `bits` of 2, 3, 4 or 8, or {', '.join(_QUANTIZED_BYTES)}",
                param="model",
            )
        return known
    dtype = config.dtype or config.torch_dtype or "bfloat16"
    if dtype not in _DTYPE_BYTES:
        raise ConfigError(f"{where}: dtype is {dtype!r}; accepted: {', '.join(_DTYPE_BYTES)}", param="model")
    return _DTYPE_BYTES[dtype]
