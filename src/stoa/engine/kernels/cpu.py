"""The kernels in C, behind `interface.Kernels`. See csrc/stoa_kernels.h for the layouts.

Python prepares structures once (weights, adapters) or once per step (rows, segments); an operation is then a
single foreign call with pointers and counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from ctypes import c_int
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, DrawRow, KVLayout, Linear, LoraPair, PackedAdapter
from stoa.engine.kernels.library import ISAS, library
from stoa.engine.kernels.quantize import BITS, GROUP
from stoa.engine.kernels.recorder import Recorder
from stoa.engine.kernels.structs import (
    STRIP,
    CpuAdapter,
    CpuLinear,
    DrawingStruct,
    LayoutStruct,
    LoraStruct,
    Rows,
    Segments,
)

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group

LANE_BYTES = 4
LANE_ALIGN = 16  # lanes of a weight are filled up to this many (an AMX tile's rows)
SLACK_BYTES = 64  # vector loads may read this far beyond an adapter's last strip
MAX_HEAD_DIM = 1024


class CpuKernels:
    """Implements `interface.Kernels`. `isa` is one of `library.ISAS` that this machine has."""

    owns_threads = True
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype, *, threads: int, isa: str) -> None:
        self.dtype = dtype
        self.isa = isa
        self.name = f"cpu-{isa}"
        self._lib = library()
        self._lib.stoa_start(c_int(threads))
        self._ops = self._lib.stoa_ops(ISAS.index(isa), int(dtype == torch.bfloat16))
        self._per_lane = LANE_BYTES // dtype.itemsize  # elements in a lane
        self._rows: Rows | None = None
        self._layouts: dict[KVLayout, Any] = {}

    # -- weights

    def pack_linear(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bits: int = 16
    ) -> CpuLinear:
        k = int(weights[0].shape[1])
        lanes = self._lanes(k)
        splits = tuple(int(w.shape[0]) for w in weights)
        quantized = bits in BITS
        strip_bytes = self._strip_bytes(k, bits)
        data = _huge_zeros(self.strips_nbytes(k, splits, bits))
        at = 0
        for weight in weights:
            count = -(-weight.shape[0] // STRIP)
            strips = data[at * strip_bytes : (at + count) * strip_bytes]
            if quantized:
                self._quantize(strips, weight, bits)
            else:
                self._fill_strips(strips, weight, lanes, pooled=True)
            at += count
        return self.linear_of(data, self._pack_bias(biases, splits), k, splits, bits)

    def linear_of(
        self, data: Tensor, bias: Tensor | None, k: int, splits: tuple[int, ...], bits: int
    ) -> CpuLinear:
        """data: strips; bias: fp32, each part filled up to whole strips."""
        own_bits = bits if bits in BITS else 8 * self.dtype.itemsize
        return CpuLinear(data, bias, k, self._lanes(k), own_bits, splits)

    def strips_nbytes(self, k: int, splits: Sequence[int], bits: int) -> int:
        return sum(-(-n // STRIP) for n in splits) * self._strip_bytes(k, bits)

    def keeper(self) -> CpuKeeper:
        return CpuKeeper(self)

    def _strip_bytes(self, k: int, bits: int) -> int:
        return quantized_strip_bytes(k, bits) if bits in BITS else self._lanes(k) * STRIP * LANE_BYTES

    def _lanes(self, k: int) -> int:
        return -(-k // (self._per_lane * LANE_ALIGN)) * LANE_ALIGN

    def _fill_strips(
        self, strips: Tensor, matrix: Tensor, lanes: int, *, narrow: bool = False, pooled: bool = False
    ) -> None:
        """matrix: [N, K] -> strips: ceil(N / 16) strips of `lanes` lanes, zeros beforehand; see csrc/pack.c."""
        matrix = matrix.to(self.dtype).contiguous()
        self._lib.stoa_pack(
            matrix.data_ptr(), matrix.shape[0], matrix.shape[1] * self.dtype.itemsize, strips.data_ptr(),
            lanes, narrow, pooled,
        )  # fmt: skip

    def _quantize(self, strips: Tensor, weight: Tensor, bits: int) -> None:
        """What `quantize.fill_strips` does, with all threads."""
        weight = (weight if weight.dtype in (torch.bfloat16, torch.float32) else weight.float()).contiguous()
        n, k = weight.shape
        wide = weight.dtype == torch.float32
        self._lib.stoa_quantize(weight.data_ptr(), n, k, wide, bits, strips.data_ptr())

    def _pack_bias(self, biases: Sequence[Tensor | None], splits: Sequence[int]) -> Tensor | None:
        if all(b is None for b in biases):
            return None
        padded = []
        for bias, n in zip(biases, splits, strict=True):
            row = torch.zeros(-(-n // STRIP) * STRIP)
            if bias is not None:
                row[:n] = bias.float()
            padded.append(row)
        return torch.cat(padded)

    # -- adapters

    def _even(self, rank: int) -> int:
        return -(-rank // self._per_lane) * self._per_lane

    def adapter_nbytes(self, linears: Sequence[Linear], ranks: Sequence[Sequence[int]]) -> int:
        total = SLACK_BYTES
        for linear, group in zip(linears, ranks, strict=True):
            assert isinstance(linear, CpuLinear)
            for rank, strips in zip(group, linear.part_strips, strict=True):
                columns = self._even(rank)
                total += columns * linear.lanes * LANE_BYTES
                total += strips * STRIP * columns * self.dtype.itemsize
        return total

    def stage_adapter(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]]
    ) -> Callable[[Tensor], CpuAdapter]:
        return functools.partial(self._lay_out, linears, pairs)

    def _lay_out(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]], dst: Tensor
    ) -> CpuAdapter:
        table = (LoraStruct * len(linears))()
        flat, at = (
            dst.view(self.dtype) if dst.numel() % 4 == 0 else dst[: dst.numel() // 4 * 4].view(self.dtype),
            0,
        )
        for entry, linear, group in zip(table, linears, pairs, strict=True):
            assert isinstance(linear, CpuLinear)
            if any(p is not None for p in group):
                at = self._pack_one(entry, linear, group, flat, at)
        flat[at:].zero_()
        return CpuAdapter(table, dst.numel())

    def _pack_one(
        self, entry: Any, linear: CpuLinear, group: Sequence[LoraPair | None], flat: Tensor, at: int
    ) -> int:
        """Lays out A of all parts, then B of each, from element `at` of `flat`; returns where it ended."""
        present = [(i, p) for i, p in enumerate(group) if p is not None]
        ranks = [self._even(p.a.shape[0]) for _, p in present]
        stacked = torch.zeros(sum(ranks), linear.lanes * self._per_lane, dtype=self.dtype)
        row = 0
        entry.a, entry.a_bytes = self._address(flat, at), stacked.nbytes
        entry.columns, entry.n_parts = sum(ranks), len(present)
        for (_, pair), rank in zip(present, ranks, strict=True):
            stacked[row : row + pair.a.shape[0], : linear.k] = pair.a
            row += rank
        self._fill_strips(flat[at:], stacked, linear.lanes, narrow=True)
        at += stacked.numel()
        lane = 0
        for slot, ((i, pair), rank) in enumerate(zip(present, ranks, strict=True)):
            part, strips, lanes = entry.part[slot], linear.part_strips[i], rank // self._per_lane
            part.h_lane, part.lanes, part.n_strips, part.scale = lane, lanes, strips, pair.scale
            part.strip, part.b = sum(linear.part_strips[:i]), self._address(flat, at)
            size = strips * STRIP * rank
            target = flat[at : at + size]
            target.zero_()
            self._fill_strips(target, pair.b, lanes)
            at += size
            lane += lanes
        return at

    def _address(self, flat: Tensor, at: int) -> int:
        return flat.data_ptr() + at * self.dtype.itemsize

    def forget_adapters(self) -> None:
        """Nothing is kept of them."""

    def lora_rows(self, starts: Sequence[int], adapters: Sequence[PackedAdapter | None]) -> Segments:
        return Segments(starts, adapters)  # type: ignore[arg-type]

    # -- one layer's work

    def linear(
        self, x: Tensor, w: Linear, out: Tensor, *, lora: Any = None, index: int = 0, accumulate: bool = False
    ) -> None:
        self._lib.stoa_linear(
            self._ops, x.data_ptr(), out.data_ptr(), w.address,  # type: ignore[attr-defined]
            lora.address if lora is not None else None, x.shape[0], index,
            out.dtype == torch.float32, accumulate,
        )  # fmt: skip

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        self._lib.stoa_rms_norm(
            self._ops, x.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), x.shape[0], x.shape[1]
        )

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        self._lib.stoa_silu_mul(self._ops, gate_up.data_ptr(), out.data_ptr(), out.shape[0], out.shape[1])

    def draw(self, logits: Tensor, rows: Sequence[DrawRow]) -> list[int]:
        n, v = logits.shape
        drawings = (DrawingStruct * n)(*(DrawingStruct(*row) for row in rows))
        found: NDArray[np.int64] = np.empty(n, dtype=np.int64)
        self._lib.stoa_draw(self._ops, logits.data_ptr(), drawings, n, v, found.ctypes.data)
        return found.tolist()  # type: ignore[no-any-return]

    # -- attention

    def kv_layout(self, layers: int, kv_heads: int, head_dim: int, block_size: int) -> KVLayout:
        assert block_size % STRIP == 0
        assert head_dim <= MAX_HEAD_DIM
        lanes = -(-head_dim // self._per_lane)
        values = -(-head_dim // STRIP) * STRIP * self.dtype.itemsize
        size = layers * kv_heads * block_size * (lanes * LANE_BYTES + values)
        return KVLayout(layers, kv_heads, head_dim, block_size, -(-size // 64) * 64)

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int,
        rows: AttentionRows, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        self._lib.stoa_rope_append(
            self._ops, qkv.data_ptr(), q_out.data_ptr(), rope.data_ptr(), kv.data_ptr(), self._layout_of(layout),
            self._rows_of(rows), q_norm.data_ptr() if q_norm is not None else None,
            k_norm.data_ptr() if k_norm is not None else None, layer, q_out.shape[1] // layout.head_dim, eps,
        )  # fmt: skip

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: AttentionRows,
        *, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        self._lib.stoa_attention(
            self._ops, q.data_ptr(), out.data_ptr(), kv.data_ptr(), self._layout_of(layout), self._rows_of(rows),
            layer, q.shape[1] // layout.head_dim, window, scale,
        )  # fmt: skip

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        group.sum_into(partial, residual)

    # -- programs

    def recorder(self) -> Recorder:
        return Recorder(self._layout_of, self._play)

    def _play(self, calls: Any, count: int, lora: Any, rows: AttentionRows) -> None:
        self._lib.stoa_play(
            self._ops,
            calls,
            len(calls),
            count,
            lora.address if lora is not None else None,
            self._rows_of(rows),
        )

    def _rows_of(self, rows: AttentionRows) -> int:
        if self._rows is None or self._rows.rows is not rows:
            self._rows = Rows(rows)
        return self._rows.address

    def _layout_of(self, layout: KVLayout) -> int:
        struct = self._layouts.get(layout)
        if struct is None:
            struct = LayoutStruct(
                layout.layers, layout.kv_heads, layout.head_dim, layout.block_size, layout.page_bytes
            )
            self._layouts[layout] = struct
        return ctypes.addressof(struct)


class CpuKeeper:
    """Implements `interface.Keeper`: strips are the same on every instruction set."""

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels
        self.form = f"strips of {STRIP}, {kernels.dtype}"

    def parts(self, linear: Linear) -> tuple[Tensor, Tensor | None]:
        assert isinstance(linear, CpuLinear)
        return linear.data, linear.bias

    def linear(
        self, data: Tensor, bias: Tensor | None, k: int, splits: tuple[int, ...], bits: int
    ) -> CpuLinear | None:
        strips = sum(-(-n // STRIP) for n in splits)
        whole = data.numel() == self._kernels.strips_nbytes(k, splits, bits)
        if not whole or (bias is not None and bias.numel() != strips * STRIP):
            return None
        return self._kernels.linear_of(data, bias, k, splits, bits)


def _huge_zeros(nbytes: int) -> Tensor:
    """Zeros (uint8) in memory that the system may back with huge pages; 64 readable bytes follow."""
    memory = mmap.mmap(-1, nbytes + SLACK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=nbytes)


def quantized_strip_bytes(k: int, bits: int) -> int:
    return -(-k // GROUP) * STRIP * (4 + GROUP * bits // 8)
