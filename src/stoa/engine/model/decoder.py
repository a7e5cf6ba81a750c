"""The decoder of the Llama family: which kernels run in which order on which weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, Kernels, KVLayout, LayerOps, Linear, Program
from stoa.engine.model.config import ModelConfig
from stoa.engine.model.rope import rope_table
from stoa.engine.model.source import Part, Source, build_from
from stoa.engine.parallel.shards import Shards

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group

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

    def __init__(self, c: ModelConfig, kernels: Kernels, rows: int, *, parted: bool = False) -> None:
        """`parted`: sums of a layer are in parts, on several ranks."""

        def empty(width: int, dtype: torch.dtype = kernels.dtype) -> Tensor:
            return torch.empty(rows, width, dtype=dtype, device=kernels.device)

        self.residual = empty(c.hidden_size, torch.float32)
        self.x = empty(c.hidden_size)
        self.qkv = empty(c.q_size + 2 * c.kv_size)
        self.q = empty(c.q_size)
        self.attended = empty(c.q_size)
        self.gate_up = empty(2 * c.intermediate_size)
        self.gated = empty(c.intermediate_size)
        if parted:
            self.partial = empty(c.hidden_size, torch.float32)

    def first(self, rows: int) -> _Buffers:
        part = object.__new__(_Buffers)
        part.__dict__.update({name: tensor[:rows] for name, tensor in self.__dict__.items()})
        return part


class Decoder:
    """Weights packed for `kernels`; `forward` runs one step's rows through all layers.

    With `shards` of several ranks these are one rank's, and all ranks must make the same steps together. `group` is
    then set before the first.
    """

    def __init__(
        self, config: ModelConfig, kernels: Kernels, folder: Path, max_positions: int, *, bits: int = 16,
        cache: Path | None = None, shards: Shards | None = None,
    ) -> None:  # fmt: skip
        """`cache`: where packed weights are kept, for the next start to map."""
        self.shards = s = shards or Shards(config)
        self.config = s.local
        self.group: Group | None = None
        self.kernels = kernels
        share = f", rank {s.rank} of {s.size}" if s.size > 1 else ""
        weights, self.writer = build_from(
            lambda source: _read(s, source, bits), folder, kernels, bits, cache, share
        )  # `writer`: the thread that writes to `cache`, if one does
        self.layers, self.embedding, self.lm_head, self.final_norm = weights
        self.rope = rope_table(config.rope, config.head_dim, max_positions).to(kernels.device)
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

    def try_step(
        self, count: int, rows: AttentionRows, lora: Any, kv: Tensor, layout: KVLayout, *, most: int
    ) -> None:
        """The layers on `count` rows of zeros, of which nothing is kept but memory for steps of `most` rows."""
        if self._buffers is None or len(self._buffers.residual) < most:
            self._make_buffers(most)
        assert self._buffers is not None
        b = self._buffers.first(count)
        b.residual.zero_()
        self._layers(self.kernels, b, rows, lora, kv, layout)

    def forward(
        self, token_ids: Tensor, rows: AttentionRows, lora: Any, kv: Tensor, layout: KVLayout
    ) -> Tensor:
        """token_ids: [T] int64 -> final-norm hidden states [T, H] in the compute dtype, valid until the next call.

        Appends the rows' keys and values to `kv`, which must be the same in every call.
        """
        T, k = token_ids.shape[0], self.kernels
        if self._buffers is None or len(self._buffers.residual) < T:
            self._make_buffers(T)
        b = self._buffers
        assert b is not None
        b.residual[:T].copy_(self.embedding.index_select(0, token_ids))
        # What C plays knows of no other ranks.
        plays = self.shards.size == 1 or k.device.type != "cpu"
        recorder = k.recorder() if plays and self._program is None else None
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
            self._add(k, b.attended, w_o, b, lora, at + 1)
            k.rms_norm(b.residual, layer.post_norm, c.rms_eps, b.x)
            k.linear(b.x, w_gate_up, b.gate_up, lora=lora, index=at + 2)
            k.silu_mul(b.gate_up, b.gated)
            self._add(k, b.gated, w_down, b, lora, at + 3)
        k.rms_norm(b.residual, self.final_norm, c.rms_eps, b.x)

    def _add(self, k: LayerOps, x: Tensor, w: Linear, b: _Buffers, lora: Any, index: int) -> None:
        """To the residual: what the linear makes of x, or of all ranks' x."""
        if self.shards.size == 1:
            k.linear(x, w, b.residual, lora=lora, index=index, accumulate=True)
            return
        assert self.group is not None
        k.linear(x, w, b.partial, lora=lora, index=index)
        k.add_reduced(b.partial, b.residual, self.group)

    def _make_buffers(self, rows: int) -> None:
        self._buffers = _Buffers(self.config, self.kernels, rows, parted=self.shards.size > 1)
        self._program = None

    def logits(self, hidden: Tensor, lora: Any) -> Tensor:
        """hidden: [n, H] -> [n, V] fp32; `lora` covers these n rows. Ranks but the first get their own columns only."""
        shape = (hidden.shape[0], self.config.vocab_size)
        out = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        self.kernels.linear(hidden, self.lm_head, out, lora=lora, index=len(self.linears) - 1)
        return out if self.group is None else self.group.gather_columns(out, self.shards.widths())

    def reserve(self, sampled: int) -> None:
        """Before other ranks hear of a step in which so many rows are sampled: is there memory for what it makes on a GPU?
        (The rest has been taken by `rehearse`.) Raises torch.OutOfMemoryError."""
        c, device = self.config, self.kernels.device
        if self.group is None or device.type == "cpu":
            return
        own = sampled * (c.hidden_size * self.kernels.dtype.itemsize + c.vocab_size * 4)
        torch.empty(
            own + self.group.gathering_bytes(sampled, self.shards.widths()), dtype=torch.uint8, device=device
        )  # kept by torch for what comes next


def _read(shards: Shards, source: Source, bits: int) -> tuple[list[Layer], Tensor, Linear, Tensor]:
    """Layers, embedding table, output head, final norm."""
    c = shards.model
    layers = []
    for i in range(c.num_layers):
        source.release()
        layers.append(_layer(shards, source, i, bits))
    table = "model.embed_tokens.weight"
    head = table if c.tied_embeddings else "lm_head.weight"
    embedding = source.table(table, (c.vocab_size, c.hidden_size))
    lm_head = source.linear([_part(shards, "lm_head", head, None)], max(bits, 8))
    return layers, embedding, lm_head, source.vector("model.norm.weight", c.hidden_size)


def _layer(shards: Shards, source: Source, i: int, bits: int) -> Layer:
    c, prefix = shards.model, f"model.layers.{i}."
    norms = [
        source.vector(f"{prefix}self_attn.{name}.weight", c.head_dim) if c.qk_norm else None
        for name in ("q_norm", "k_norm")
    ]
    return Layer(
        input_norm=source.vector(prefix + "input_layernorm.weight", c.hidden_size),
        post_norm=source.vector(prefix + "post_attention_layernorm.weight", c.hidden_size),
        q_norm=norms[0],
        k_norm=norms[1],
        groups=tuple(_group(shards, source, prefix, modules, bits) for modules in GROUPS),
        window=c.windows[i],
    )


def _group(shards: Shards, source: Source, prefix: str, modules: tuple[str, ...], bits: int) -> Linear:
    parts = []
    for module in modules:
        name = prefix + ("self_attn." if module in _ATTENTION else "mlp.") + module
        has_bias = _has_bias(shards.model, module) and shards.adds_bias(module)
        parts.append(_part(shards, module, f"{name}.weight", f"{name}.bias" if has_bias else None))
    return source.linear(parts, bits)


def _part(shards: Shards, module: str, weight: str, bias: str | None) -> Part:
    cut = shards.cut(module)
    return Part(weight, bias, shards.model.linear_shapes()[module], cut.rows, cut.columns)


def _has_bias(config: ModelConfig, module: str) -> bool:
    c = config
    return c.o_bias if module == "o_proj" else c.qkv_bias if module in _ATTENTION else c.mlp_bias
