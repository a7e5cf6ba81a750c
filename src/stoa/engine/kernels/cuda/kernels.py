"""All arithmetic of the forward pass on an NVIDIA GPU, behind `interface.Kernels`.

This file says which kernel runs and keeps the memory that kernels share; each kind has a file of its own. Everything is
started on the current stream in the order of the calls, so memory may be used again by the next call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from stoa.engine.kernels.cuda import attention, draw, elementwise, lora, rope
from stoa.engine.kernels.cuda import linear as dense
from stoa.engine.kernels.cuda.device import Gpu
from stoa.engine.kernels.cuda.launch import Launch, direct
from stoa.engine.kernels.cuda.linear import CudaLinear
from stoa.engine.kernels.cuda.program import Recorder
from stoa.engine.kernels.cuda.scratch import Scratch
from stoa.engine.kernels.cuda.segments import CudaAdapter, DeviceSegments, Segments
from stoa.engine.kernels.cuda.staging import Stager
from stoa.engine.kernels.cuda.step import DeviceRows, upload_rows
from stoa.engine.kernels.cuda.tuning import Tuning
from stoa.engine.kernels.interface import AttentionRows, DrawRow, KVLayout, Linear, LoraPair, PackedAdapter

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group

C = TypeVar("C")


class CudaKernels:
    """Implements `interface.Kernels`."""

    owns_threads = False

    def __init__(
        self,
        dtype: torch.dtype,
        gpu: Gpu,
        tuning: Tuning,
        launch: Launch = direct,
        *,
        lora_beside: bool = False,
    ) -> None:
        """`lora_beside`: where kernels begin early, the base product does not wait for LoRA's before it must."""
        self.dtype = dtype
        self.device = gpu.device
        self.name = gpu.kernels_name
        self.launch = launch
        self.scratch = Scratch(gpu)
        self._tuning = tuning
        self._lora_beside = lora_beside
        self._choices: dict[tuple[Any, ...], Any] = {}
        self._rows: tuple[AttentionRows, int, DeviceRows] | None = None
        self._stager = Stager(gpu.device)

    # -- weights

    def pack_linear(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bits: int = 16
    ) -> CudaLinear:
        packed = dense.pack_linear(weights, biases, bits, self.dtype, self.device)
        self.scratch.serve(packed)
        return packed

    def keeper(self) -> None:
        """Weights lie as in the model's files, or are quantized in a moment."""

    # -- adapters

    def adapter_nbytes(self, linears: Sequence[Linear], ranks: Sequence[Sequence[int]]) -> int:
        return lora.adapter_nbytes(linears, ranks, self.dtype)

    def stage_adapter(
        self, linears: Sequence[Linear], pairs: Sequence[Sequence[LoraPair | None]]
    ) -> Callable[[Tensor], CudaAdapter]:
        ranks = [[0 if pair is None else pair.a.shape[0] for pair in group] for group in pairs]
        host = torch.empty(self.adapter_nbytes(linears, ranks), dtype=torch.uint8)
        lora.lay_out(linears, pairs, self.dtype, host)
        return functools.partial(self._bring, host, ranks)

    def _bring(self, host: Tensor, ranks: list[list[int]], dst: Tensor) -> CudaAdapter:
        self._stager.copy(host, dst)
        self.scratch.expect(ranks)
        return CudaAdapter(dst.data_ptr(), dst.numel())

    def forget_adapters(self) -> None:
        self.scratch.forget_adapters()

    def lora_rows(self, starts: Sequence[int], adapters: Sequence[PackedAdapter | None]) -> Segments:
        self.scratch.settle()
        return Segments(starts, adapters)  # type: ignore[arg-type]

    # -- one layer's work

    def linear(
        self, x: Tensor, w: Any, out: Tensor, *, lora: Any = None, index: int = 0, accumulate: bool = False
    ) -> None:
        delta = adapted = None
        after_lora = False
        if lora is not None and self.scratch.adapted(index):
            segments = lora.sent(self.device) if isinstance(lora, Segments) else lora
            after_lora = segments.num_tiles > 0  # else nothing is launched
        if after_lora:
            delta = self._lora(x, w, out, segments, index, accumulate=accumulate)
            adapted = None if delta is None else segments.adapted
        tile = self._tile(x, w, out, accumulate=accumulate)
        self._dense(
            x,
            w,
            out,
            tile,
            delta,
            adapted,
            accumulate=accumulate,
            after_lora=after_lora and self._lora_beside,
        )

    def _tile(self, x: Tensor, w: CudaLinear, out: Tensor, *, accumulate: bool) -> dense.Tile:
        rows = x.shape[0]
        key = (w.n, w.k, w.bits, dense.row_class(rows))

        def run(tile: dense.Tile) -> None:
            self._dense(x, w, torch.empty_like(out), tile, None, None, accumulate=accumulate)

        return self._chosen(("linear", *key), lambda: dense.candidates(w, rows), run)

    def _chosen(
        self, key: tuple[Any, ...], candidates: Callable[[], Sequence[C]], run: Callable[[C], None]
    ) -> C:
        """Of the candidates for what `key` says: it is asked for often, and answered from memory."""
        found: C | None = self._choices.get(key)
        if found is None:
            name, *rest = key
            found = self._tuning.choose(name, (*rest, str(self.dtype)), candidates(), run)
            if not self._tuning.frozen:
                self._choices[key] = found
        return found

    def _dense(
        self, x: Tensor, w: CudaLinear, out: Tensor, tile: dense.Tile, delta: Tensor | None, adapted: Tensor | None,
        *, accumulate: bool, after_lora: bool = False,
    ) -> None:  # fmt: skip
        dense.linear(
            self.launch, x, w, out, tile=tile, delta=delta, has_delta=adapted, accumulate=accumulate,
            after_lora=after_lora, workspace=self.scratch.partials(x.shape[0]),
        )  # fmt: skip

    def _lora(
        self, x: Tensor, w: CudaLinear, out: Tensor, segments: DeviceSegments, index: int, *, accumulate: bool
    ) -> Tensor | None:
        """Adds to `out` if that is what is wanted, else returns what is to be added: fp32, of the rows with an adapter."""
        rows = x.shape[0]
        h = self.scratch.shrunk(lora.pieces(w.k)[0], rows)
        target = out if accumulate else self.scratch.delta(rows, w.n)

        def expand(how: lora.Expand, target: Tensor) -> None:
            lora.expand(
                self.launch, h, self.dtype, w.k, w.splits, index, segments, target, how, accumulate=accumulate
            )

        lora.shrink(self.launch, x, len(w.splits), index, segments, h)
        key = ("expand", w.k, w.splits, dense.row_class(segments.num_tiles))
        trial = functools.partial(torch.empty, rows, w.n, device=self.device)
        how = self._chosen(key, lambda: lora.EXPANDS, lambda how: expand(how, trial()))
        expand(how, target)
        return None if accumulate else target

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        group.sum_into(partial, residual)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        elementwise.rms_norm(self.launch, x, weight, eps, out)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        elementwise.silu_mul(self.launch, gate_up, out)

    def draw(self, logits: Tensor, rows: Sequence[DrawRow]) -> list[int]:
        return draw.draw(self.launch, logits, rows)

    # -- attention

    def kv_layout(self, layers: int, kv_heads: int, head_dim: int, block_size: int) -> KVLayout:
        size = layers * 2 * kv_heads * block_size * head_dim * self.dtype.itemsize
        return KVLayout(layers, kv_heads, head_dim, block_size, -(-size // 64) * 64)

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope_table: Tensor, kv: Tensor, layout: KVLayout, layer: int,
        rows: Any, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        rope.rope_append(
            self.launch, qkv, q_out, rope_table, kv, layout, layer, self._rows_of(rows, q_out.shape[1], layout),
            q_norm=q_norm, k_norm=k_norm, eps=eps,
        )  # fmt: skip

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: Any,
        *, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        attention.attention(
            self.launch, q, out, kv, layout, layer, self._rows_of(rows, q.shape[1], layout), scale=scale, window=window,
            scratch=self.scratch.splits(layout.head_dim),
        )  # fmt: skip

    def _rows_of(self, rows: AttentionRows | DeviceRows, q_size: int, layout: KVLayout) -> DeviceRows:
        if isinstance(rows, DeviceRows):
            return rows
        per_tile = attention.tile_rows(q_size // layout.head_dim // layout.kv_heads)
        if self._rows is None or self._rows[0] is not rows or self._rows[1] != per_tile:
            sent = upload_rows(rows, per_tile, layout.block_size, self.device)
            self._rows = (rows, per_tile, sent)
        return self._rows[2]

    # -- programs

    @contextlib.contextmanager
    def through(self, launch: Launch) -> Iterator[None]:
        """Kernels start by `launch` meanwhile."""
        before, self.launch = self.launch, launch
        try:
            yield
        finally:
            self.launch = before

    def recorder(self) -> Recorder:
        return Recorder(self, self._tuning)
