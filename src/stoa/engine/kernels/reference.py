"""The kernels in plain torch: the truth that fast ones are tested against, and the path without a compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stoa.engine.kernels.interface import AttentionRows, DrawRow, KVLayout, Linear, LoraPair, PackedAdapter
from stoa.engine.kernels.quantize import BITS, dequantize, quantize_weight, round_inputs

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group


@dataclass(frozen=True)
class TorchLinear:
    weight: Tensor  # [sum(splits), K] in the compute dtype; or quantized, see quantize.py
    scale: Tensor | None  # of a quantized weight
    bits: int
    bias: Tensor | None  # [sum(splits)] fp32
    k: int
    splits: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def product(self, x: Tensor) -> Tensor:
        """x: [T, K] -> fp32 [T, sum(splits)], without bias."""
        if self.scale is None:
            return F.linear(x, self.weight).float()
        return F.linear(round_inputs(x), dequantize(self.weight, self.scale, self.bits, self.k))


@dataclass(frozen=True)
class TorchAdapter:
    """parts[i]: (first output column, A, B, scale) of the adapted parts of linear i; A, B view the pool."""

    parts: list[list[tuple[int, Tensor, Tensor, float]]]
    nbytes: int


@dataclass(frozen=True)
class _Segments:
    starts: list[int]
    adapters: list[TorchAdapter | None]


class TorchKernels:
    """Implements `interface.Kernels`."""

    name = "torch"
    owns_threads = False
    device = torch.device("cpu")

    def recorder(self) -> None:
        """Nothing is gained by recording what torch does."""

    def keeper(self) -> None:
        """Weights lie as in the model's files."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def pack_linear(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bits: int = 16
    ) -> TorchLinear:
        weight, scale = torch.cat(list(weights)), None
        k = int(weight.shape[1])
        if bits in BITS:
            weight, scale = quantize_weight(weight, bits)
        else:
            weight = weight.to(self.dtype)
        bias = None
        if any(b is not None for b in biases):
            zeros = [
                torch.zeros(w.shape[0]) if b is None else b.float()
                for w, b in zip(weights, biases, strict=True)
            ]
            bias = torch.cat(zeros)
        return TorchLinear(weight, scale, bits, bias, k, tuple(int(w.shape[0]) for w in weights))

    # -- adapters: A then B of each part, packed densely in order

    def adapter_nbytes(self, linears: Sequence[Linear], ranks: Sequence[Sequence[int]]) -> int:
        elements = sum(
            rank * (linear.k + n)
            for linear, group in zip(linears, ranks, strict=True)
            for n, rank in zip(linear.splits, group, strict=True)
        )
        return elements * self.dtype.itemsize

    def stage_adapter(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]]
    ) -> Callable[[Tensor], TorchAdapter]:
        return functools.partial(self._lay_out, linears, pairs)

    def _lay_out(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]], dst: Tensor
    ) -> TorchAdapter:
        flat, at = dst.view(self.dtype), 0
        parts: list[list[tuple[int, Tensor, Tensor, float]]] = []
        for linear, group in zip(linears, pairs, strict=True):
            column, mine = 0, []
            for n, pair in zip(linear.splits, group, strict=True):
                if pair is not None:
                    placed = []
                    for matrix in (pair.a, pair.b):
                        view = flat[at : at + matrix.numel()].view(matrix.shape)
                        view.copy_(matrix)
                        placed.append(view)
                        at += matrix.numel()
                    mine.append((column, placed[0], placed[1], pair.scale))
                column += n
            parts.append(mine)
        return TorchAdapter(parts, at * self.dtype.itemsize)

    def forget_adapters(self) -> None:
        """Nothing is kept of them."""

    def lora_rows(self, starts: Sequence[int], adapters: Sequence[PackedAdapter | None]) -> _Segments:
        return _Segments(list(starts), list(adapters))  # type: ignore[arg-type]

    # -- one layer's work

    def linear(
        self,
        x: Tensor,
        w: Any,
        out: Tensor,
        *,
        lora: Any = None,
        index: int = 0,
        accumulate: bool = False,
    ) -> None:
        y = w.product(x)
        if w.bias is not None:
            y += w.bias
        if lora is not None:
            for g, adapter in enumerate(lora.adapters):
                rows = slice(lora.starts[g], lora.starts[g + 1])
                for column, a, b, scale in adapter.parts[index] if adapter is not None else ():
                    h = (F.linear(x[rows].float(), a.float()) * scale).to(self.dtype)
                    y[rows, column : column + b.shape[0]] += F.linear(h.float(), b.float())
        if accumulate:
            out += y
        else:
            out.copy_(y)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        out.copy_(_rms(x, weight, eps))

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        gate, up = gate_up.float().chunk(2, dim=1)
        out.copy_(F.silu(gate) * up)

    def draw(self, logits: Tensor, rows: Sequence[DrawRow]) -> list[int]:
        values = logits.numpy()
        return [draw_one(values[i], row) for i, row in enumerate(rows)]

    def kv_layout(self, layers: int, kv_heads: int, head_dim: int, block_size: int) -> KVLayout:
        size = layers * 2 * kv_heads * block_size * head_dim * self.dtype.itemsize
        return KVLayout(layers, kv_heads, head_dim, block_size, -(-size // 64) * 64)

    def _pages(self, kv: Tensor, layout: KVLayout, layer: int) -> Tensor:
        """[pages, 2, kv_heads, block_size, head_dim] view of one layer."""
        per_layer = 2 * layout.kv_heads * layout.block_size * layout.head_dim
        pages = kv.view(-1, layout.page_bytes).view(self.dtype)[
            :, layer * per_layer : (layer + 1) * per_layer
        ]
        shape = (2, layout.kv_heads, layout.block_size, layout.head_dim)
        return torch.unflatten(pages, 1, shape)

    def rope_append(
        self,
        qkv: Tensor,
        q_out: Tensor,
        rope: Tensor,
        kv: Tensor,
        layout: KVLayout,
        layer: int,
        rows: AttentionRows,
        *,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        T, d = qkv.shape[0], layout.head_dim
        q, k, v = qkv.split([q_out.shape[1], layout.kv_heads * d, layout.kv_heads * d], dim=1)
        table = rope[torch.from_numpy(rows.positions).long()]
        q_out.copy_(self._rotate(q.reshape(T, -1, d), table, q_norm, eps).reshape(T, -1))
        pages = self._pages(kv, layout, layer)
        slots = torch.from_numpy(rows.slots)
        page, offset = slots // layout.block_size, slots % layout.block_size
        pages[page, 0, :, offset] = self._rotate(k.reshape(T, -1, d), table, k_norm, eps).to(self.dtype)
        pages[page, 1, :, offset] = v.reshape(T, -1, d)

    def _rotate(self, x: Tensor, table: Tensor, norm: Tensor | None, eps: float) -> Tensor:
        """x: [T, heads, D] -> rotated, fp32."""
        x = x.float()
        if norm is not None:
            x = _rms(x, norm, eps)
        cos, sin = table[:, None].chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def attention(
        self,
        q: Tensor,
        out: Tensor,
        kv: Tensor,
        layout: KVLayout,
        layer: int,
        rows: AttentionRows,
        *,
        scale: float,
        window: int = 0,
    ) -> None:
        pages = self._pages(kv, layout, layer)
        d = layout.head_dim
        groups = q.shape[1] // d // layout.kv_heads
        for s, context in enumerate(rows.context_len.tolist()):
            mine = slice(int(rows.query_start[s]), int(rows.query_start[s + 1]))
            used = torch.from_numpy(rows.block_table[s, : -(-context // layout.block_size)]).long()
            keys, values = pages[used].transpose(0, 1).transpose(1, 2).flatten(2, 3)[:, :, :context].float()
            query = q[mine].float().view(-1, layout.kv_heads, groups, d)
            scores = torch.einsum("thgd,hcd->hgtc", query, keys) * scale
            position = torch.from_numpy(rows.positions[mine])[:, None]
            behind = position - torch.arange(context)
            hidden = behind < 0 if not window else (behind < 0) | (behind >= window)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            out[mine] = torch.einsum("hgtc,hcd->thgd", weights, values).reshape(-1, q.shape[1]).to(self.dtype)

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        group.sum_into(partial, residual)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def draw_one(row: NDArray[np.float32], how: DrawRow) -> int:
    if how.temperature <= 0:
        return int(row.argmax())
    probs = np.exp((row - row.max()).astype(np.float64) / how.temperature)
    if how.min_p > 0:
        probs[probs < how.min_p] = 0
    if 0 < how.top_k < len(probs):
        probs[probs < np.partition(probs, -how.top_k)[-how.top_k]] = 0
    if how.top_p < 1:
        ordered = np.sort(probs)[::-1]
        mass = np.cumsum(ordered)
        last = int(np.searchsorted(mass, how.top_p * mass[-1]))
        probs[probs < ordered[min(last, len(ordered) - 1)]] = 0
    mass = np.cumsum(probs)
    chosen = int(np.searchsorted(mass, how.uniform * mass[-1], side="right"))
    return min(chosen, int(np.flatnonzero(probs)[-1]))
