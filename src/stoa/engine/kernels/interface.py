"""The boundary between the model's forward pass and the code that does arithmetic.

One step runs `T` token rows through the model. Rows of one sequence are adjacent; rows that use the same
adapter are adjacent too. Activations between ops are in the model's compute dtype (bf16 or fp32), the
residual stream and logits are fp32. Every kernel keeps one reduction order per row: a row's result does
not depend on which other rows are in the step.

Implementations: `reference.TorchKernels` (the truth in tests; runs anywhere), `cpu.CpuKernels` (C) and
`cuda.CudaKernels` (Triton).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group


@dataclass(frozen=True)
class LoraPair:
    """One linear layer's adapter: y += scale * (x Aᵀ) Bᵀ."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float


class Linear(Protocol):
    """A packed weight: one or more [n_i, K] matrices that read the same input (q/k/v, gate/up),
    with their outputs side by side. Opaque but for these."""

    @property
    def k(self) -> int: ...

    @property
    def splits(self) -> tuple[int, ...]:
        """n_i, outputs of each part."""
        ...

    @property
    def nbytes(self) -> int: ...


class PackedAdapter(Protocol):
    """An adapter laid out for the kernels inside pool memory that somebody else owns. Opaque."""

    @property
    def nbytes(self) -> int: ...


class DrawRow(NamedTuple):
    """How a row's token is chosen. Filters apply in the order temperature, min_p, top_k, top_p; ties stay in."""

    temperature: float = 0.0
    min_p: float = 0.0
    top_p: float = 1.0
    uniform: float = 0.0
    top_k: int = 0  # 0 or below: off


@dataclass(frozen=True)
class KVLayout:
    """Shape of a KV page: `block_size` tokens of every layer, keys and values. Inside a page the
    layout belongs to the kernels; pages may be copied and reused as plain bytes."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    page_bytes: int  # kernels' need, rounded up to 64


@dataclass(frozen=True)
class AttentionRows:
    """Which rows of the step belong to which sequence, and where their keys and values live.

    Sequence s owns rows query_start[s]:query_start[s+1]; after this step's keys are appended it has
    context_len[s] tokens, the step's rows being the last of them. Page number of the i-th block of
    sequence s is block_table[s, i] (unused entries: 0). All C-contiguous.
    """

    query_start: NDArray[np.int32]  # [S + 1]
    context_len: NDArray[np.int32]  # [S]
    block_table: NDArray[np.int32]  # [S, max_blocks]
    positions: NDArray[np.int32]  # [T]
    slots: NDArray[np.int64]  # [T]: page * block_size + offset, where the row's key/value go


class LayerOps(Protocol):
    """What a decoder layer consists of. Methods write into `out` tensors, which are contiguous and never
    alias inputs."""

    def linear(
        self, x: Tensor, w: Linear, out: Tensor, *, lora: Any = None, index: int = 0, accumulate: bool = False
    ) -> None:
        """out[T, sum(splits)] (=, or += with accumulate) x[T, K] Wᵀ + bias + LoRA. x in `dtype`; out in
        `dtype` or fp32 (fp32 when accumulating). Sums are fp32, rounded once at the end; the LoRA
        intermediate (x Aᵀ) * scale is rounded to `dtype` before B."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """x: [T, H] fp32, weight: [H] fp32 -> out: [T, H] in `dtype`."""
        ...

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """gate_up: [T, 2I] in `dtype` -> out: [T, I] = silu(gate) * up."""
        ...

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int,
        rows: AttentionRows, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        """qkv: [T, (Hq + 2 Hkv) D] in `dtype`, parts q|k|v. Optionally RMS-normalises each q and k head
        (Qwen3), rotates q and k by `rope` ([positions, D] fp32: cos of the D/2 frequencies, then sin; pairs
        are (i, i + D/2)), writes q to q_out [T, Hq D] and k, v to the pages. kv: uint8 [pages * page_bytes]."""
        ...

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: AttentionRows,
        *, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        """Causal paged attention: q, out: [T, Hq D] in `dtype`. Row t at position p sees positions
        max(0, p - window + 1) … p (window 0 = all). Query head h reads KV head h // (Hq // Hkv)."""
        ...

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        """residual [T, H] += partial [T, H] of all ranks, in their order; both fp32. See `Group.sum_into`."""
        ...


Program = Callable[[int, Any, AttentionRows], None]  # does what was recorded on (count, lora, rows)


class Recorder(LayerOps, Protocol):
    """Notes operations instead of doing them. Tensors must live on; their first dimension, `lora` and `rows`
    are what a program is told anew each time."""

    def program(self) -> Program: ...


class Keeper(Protocol):
    """Takes linears apart for a file, and makes them again from what was read."""

    @property
    def form(self) -> str:
        """How the bytes lie; one form is read by all kernels that name it."""
        ...

    def parts(self, linear: Linear) -> tuple[Tensor, Tensor | None]:
        """(data as uint8, bias as fp32)."""
        ...

    def linear(
        self, data: Tensor, bias: Tensor | None, k: int, splits: tuple[int, ...], bits: int
    ) -> Linear | None:
        """The linear of these parts, read in place (data aligned to 64 bytes, 64 readable bytes behind it), which
        `pack_linear` made of weights [n_i, k] with `bits`. None: their sizes do not fit."""
        ...


class Kernels(LayerOps, Protocol):
    """All arithmetic of the forward pass. `dtype` is the compute dtype."""

    @property
    def name(self) -> str:
        """E.g. "torch", "cpu-amx", "cpu-avx512bf16", "cpu-avx512", "cpu-avx2", "cpu-portable", "cuda-sm90"."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """Where weights, pages and activations lie."""
        ...

    @property
    def owns_threads(self) -> bool:
        """Do the kernels run on threads of their own, rather than torch's?"""
        ...

    # -- weights, once at load
    def pack_linear(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bits: int = 16
    ) -> Linear:
        """weights: [n_i, K] each, any float dtype; the packed copy is in `dtype` (biases fp32), or with
        `bits` 8 or 4 quantized as `quantize.py` says. The inputs may be freed afterwards."""
        ...

    def keeper(self) -> Keeper | None:
        """None where nothing is gained by keeping packed weights."""
        ...

    # -- adapters
    def adapter_nbytes(self, linears: Sequence[Linear], ranks: Sequence[Sequence[int]]) -> int:
        """Pool bytes that an adapter needs; ranks[i][j] is the rank on part j of linears[i], 0 = absent."""
        ...

    def stage_adapter(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]]
    ) -> Callable[[Tensor], PackedAdapter]:
        """Makes `pairs` (same nesting as `ranks` above) ready in host memory. What it returns lays them out in dst: uint8
        [adapter_nbytes], 64-byte aligned, as often as it is called. True bytes only: nothing is padded to another
        adapter's or layer's rank. Both are thread-safe, and called off the step loop. The order of `linears` is the
        index that `linear(…, index)` uses later."""
        ...

    def forget_adapters(self) -> None:
        """None that was staged so far will be used again."""
        ...

    def lora_rows(self, starts: Sequence[int], adapters: Sequence[PackedAdapter | None]) -> Any:
        """Once per step: segment g is rows starts[g]:starts[g+1] and uses adapters[g]. len(starts) ==
        len(adapters) + 1, starts[0] == 0, starts[-1] == T. Result is passed to `linear`."""
        ...

    def draw(self, logits: Tensor, rows: Sequence[DrawRow]) -> list[int]:
        """logits: [n, V] fp32 -> a token for each row: the largest (the lowest among equals) at temperature 0,
        else the first whose cumulated probability exceeds `uniform` of what the filters leave."""
        ...

    def kv_layout(self, layers: int, kv_heads: int, head_dim: int, block_size: int) -> KVLayout:
        """block_size: a multiple of 16."""
        ...

    # -- programs
    def recorder(self) -> Recorder | None:
        """None where nothing is gained by recording."""
        ...
