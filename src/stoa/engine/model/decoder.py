"""The decoder of the Llama family: which kernels run in which order on which weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, Kernels, KVLayout, LayerOps, Linear, Program
from stoa.engine.model.config import ModelConfig
from stoa.engine.model.rope import rope_table
from stoa.engine.model.source import Source, build_from

# Linear layers that read the same input run as one; an adapter is laid out in this order.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
LM_HEAD_LAYER = -1
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@dataclass(frozen=True)
class Layer:
    input_norm: Tensor  # [H] fp32
    post_norm: Tensor  # [H] fp32
    q_norm: Tensor | None  # [D] fp32
    k_norm: Tensor | None
    groups: tuple[Linear, ...]  # as GROUPS
    window: int


class _Buffers:
    """Activations of up to `rows` rows. What a step leaves here, the next one overwrites."""

    def __init__(self, c: ModelConfig, dtype: torch.dtype, rows: int) -> None:
        self.residual = torch.empty(rows, c.hidden_size, dtype=torch.float32)
        self.x = torch.empty(rows, c.hidden_size, dtype=dtype)
        self.qkv = torch.empty(rows, c.q_size + 2 * c.kv_size, dtype=dtype)
        self.q = torch.empty(rows, c.q_size, dtype=dtype)
        self.attended = torch.empty(rows, c.q_size, dtype=dtype)
        self.gate_up = torch.empty(rows, 2 * c.intermediate_size, dtype=dtype)
        self.gated = torch.empty(rows, c.intermediate_size, dtype=dtype)

    def first(self, rows: int) -> _Buffers:
        part = object.__new__(_Buffers)
        part.__dict__.update({name: tensor[:rows] for name, tensor in self.__dict__.items()})
        return part


class Decoder:
    """Weights packed for `kernels`; `forward` runs one step's rows through all layers."""

    def __init__(
        self, config: ModelConfig, kernels: Kernels, folder: Path, max_positions: int, *, bits: int = 16,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        """`cache`: where packed weights are kept, for the next start to map."""
        self.config = config
        self.kernels = kernels
        weights, self.writer = build_from(
            lambda source: _read(config, source, bits), folder, kernels, bits, cache
        )  # `writer`: the thread that writes to `cache`, if one does
        self.layers, self.embedding, self.lm_head, self.final_norm = weights
        self.rope = rope_table(config.rope, config.head_dim, max_positions)
        self._buffers: _Buffers | None = None
        self._program: Program | None = None  # the layers' calls on `_buffers`, where kernels can play them
        self.linears: list[Linear] = [g for layer in self.layers for g in layer.groups] + [self.lm_head]

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed linear weights that one decode step must read."""
        return sum(linear.nbytes for linear in self.linears)

    def module_keys(self) -> list[list[tuple[int, str]]]:
        """(layer, module) of each part of each of `linears`: where an adapter's pairs go."""
        keys = [[(i, m) for m in group] for i in range(self.config.num_layers) for group in GROUPS]
        return [*keys, [(LM_HEAD_LAYER, "lm_head")]]

    def forward(
        self, token_ids: Tensor, rows: AttentionRows, lora: Any, kv: Tensor, layout: KVLayout
    ) -> Tensor:
        """token_ids: [T] int64 -> final-norm hidden states [T, H] in the compute dtype, valid until the next call.

        Appends the rows' keys and values to `kv`, which must be the same in every call.
        """
        T, k = token_ids.shape[0], self.kernels
        if self._buffers is None or len(self._buffers.residual) < T:
            self._buffers, self._program = _Buffers(self.config, k.dtype, T), None
        b = self._buffers
        b.residual[:T].copy_(self.embedding.index_select(0, token_ids))
        recorder = k.recorder() if self._program is None else None
        if recorder is not None:
            self._layers(recorder, b, rows, None, kv, layout)
            self._program = recorder.program()
        if self._program is not None:
            self._program(T, lora, rows)
        else:
            self._layers(k, b.first(T), rows, lora, kv, layout)
        return b.x[:T]

    def _layers(
        self, k: LayerOps, b: _Buffers, rows: AttentionRows, lora: Any, kv: Tensor, layout: KVLayout
    ) -> None:
        c = self.config
        scale = c.head_dim**-0.5
        for i, layer in enumerate(self.layers):
            w_qkv, w_o, w_gate_up, w_down = layer.groups
            at = i * len(GROUPS)
            k.rms_norm(b.residual, layer.input_norm, c.rms_eps, b.x)
            k.linear(b.x, w_qkv, b.qkv, lora=lora, index=at)
            k.rope_append(b.qkv, b.q, self.rope, kv, layout, i, rows,
                          q_norm=layer.q_norm, k_norm=layer.k_norm, eps=c.rms_eps)  # fmt: skip
            k.attention(b.q, b.attended, kv, layout, i, rows, scale=scale, window=layer.window)
            k.linear(b.attended, w_o, b.residual, lora=lora, index=at + 1, accumulate=True)
            k.rms_norm(b.residual, layer.post_norm, c.rms_eps, b.x)
            k.linear(b.x, w_gate_up, b.gate_up, lora=lora, index=at + 2)
            k.silu_mul(b.gate_up, b.gated)
            k.linear(b.gated, w_down, b.residual, lora=lora, index=at + 3, accumulate=True)
        k.rms_norm(b.residual, self.final_norm, c.rms_eps, b.x)

    def logits(self, hidden: Tensor, lora: Any) -> Tensor:
        """hidden: [n, H] -> [n, V] fp32; `lora` covers these n rows."""
        out = torch.empty(hidden.shape[0], self.config.vocab_size, dtype=torch.float32)
        self.kernels.linear(hidden, self.lm_head, out, lora=lora, index=len(self.linears) - 1)
        return out


def _read(config: ModelConfig, source: Source, bits: int) -> tuple[list[Layer], Tensor, Linear, Tensor]:
    """Layers, embedding table, output head, final norm."""
    c = config
    layers = []
    for i in range(c.num_layers):
        source.release()
        layers.append(_layer(c, source, i, bits))
    shape = c.linear_shapes()["lm_head"]
    table = "model.embed_tokens.weight"
    head = table if c.tied_embeddings else "lm_head.weight"
    embedding = source.table(table, shape)
    lm_head = source.linear([head], (shape[0],), shape[1], [None], max(bits, 8))
    return layers, embedding, lm_head, source.vector("model.norm.weight", c.hidden_size)


def _layer(config: ModelConfig, source: Source, i: int, bits: int) -> Layer:
    c, prefix = config, f"model.layers.{i}."
    norms = [
        source.vector(f"{prefix}self_attn.{name}.weight", c.head_dim) if c.qk_norm else None
        for name in ("q_norm", "k_norm")
    ]
    return Layer(
        input_norm=source.vector(prefix + "input_layernorm.weight", c.hidden_size),
        post_norm=source.vector(prefix + "post_attention_layernorm.weight", c.hidden_size),
        q_norm=norms[0],
        k_norm=norms[1],
        groups=tuple(_group(c, source, prefix, modules, bits) for modules in GROUPS),
        window=c.windows[i],
    )


def _group(config: ModelConfig, source: Source, prefix: str, modules: tuple[str, ...], bits: int) -> Linear:
    shapes = config.linear_shapes()
    names = [prefix + ("self_attn." if m in _ATTENTION else "mlp.") + m for m in modules]
    biases = [f"{n}.bias" if _has_bias(config, m) else None for n, m in zip(names, modules, strict=True)]
    splits = tuple(shapes[m][0] for m in modules)
    return source.linear([f"{n}.weight" for n in names], splits, shapes[modules[0]][1], biases, bits)


def _has_bias(config: ModelConfig, module: str) -> bool:
    c = config
    return c.o_bias if module == "o_proj" else c.qkv_bias if module in _ATTENTION else c.mlp_bias
