"""The kernels of a GPU, asked with tensors of the CPU: so that one test body serves them and the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stoa.engine.kernels.cuda import load_cuda
from stoa.engine.kernels.interface import KVLayout, LoraPair

INTERPRET = os.environ.get("STOA_GPU_TESTS") == "interpret"


class Moved:
    """`interface.Kernels` as far as tests ask. What is not written by a kernel comes back as NaN."""

    def __init__(self, dtype: torch.dtype, cache: Path | None = None) -> None:
        self.inner = load_cuda(dtype, cache)
        self.dtype, self.device = dtype, self.inner.device
        self._kept: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # memory of the CPU and what stands for it on the device

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def _back(self, found: Tensor, out: Tensor) -> None:
        out.copy_(found)

    def _poisoned(self, out: Tensor) -> Tensor:
        return torch.full(out.shape, torch.nan, dtype=out.dtype, device=self.device)

    def _stand_in(self, memory: Tensor) -> Tensor:
        """The same one each time, filled at the first."""
        if memory.data_ptr() not in self._kept:
            self._kept[memory.data_ptr()] = (memory, memory.to(self.device, copy=True))
        return self._kept[memory.data_ptr()][1]

    def pack_linear(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bits: int = 16) -> Any:
        return self.inner.pack_linear(weights, biases, bits)

    def adapter_nbytes(self, linears: Sequence[Any], ranks: Sequence[Sequence[int]]) -> int:
        return self.inner.adapter_nbytes(linears, ranks)

    def stage_adapter(
        self, linears: Sequence[Any], pairs: Sequence[Sequence[LoraPair | None]]
    ) -> Callable[[Tensor], Any]:
        lay_out = self.inner.stage_adapter(linears, pairs)
        return lambda dst: lay_out(self._stand_in(dst))

    def lora_rows(self, starts: Sequence[int], adapters: Sequence[Any]) -> Any:
        return self.inner.lora_rows(starts, adapters)

    def linear(self, x: Tensor, w: Any, out: Tensor, *, accumulate: bool = False, **lora: Any) -> None:
        found = self._there(out.clone()) if accumulate else self._poisoned(out)
        self.inner.linear(self._there(x), w, found, accumulate=accumulate, **lora)
        self._back(found, out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        found = self._poisoned(out)
        self.inner.rms_norm(self._there(x), self._there(weight), eps, found)
        self._back(found, out)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        found = self._poisoned(out)
        self.inner.silu_mul(self._there(gate_up), found)
        self._back(found, out)

    def draw(self, logits: Tensor, rows: Any) -> list[int]:
        return self.inner.draw(self._there(logits.clone()), rows)

    def kv_layout(self, *shape: int) -> KVLayout:
        return self.inner.kv_layout(*shape)

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: Any, *,
        q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        found = self._poisoned(q_out)
        norms = [None if norm is None else self._there(norm) for norm in (q_norm, k_norm)]
        self.inner.rope_append(
            self._there(qkv), found, self._there(rope), self._stand_in(kv), layout, layer, rows,
            q_norm=norms[0], k_norm=norms[1], eps=eps,
        )  # fmt: skip
        self._back(found, q_out)

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: Any, **how: Any
    ) -> None:
        found = self._poisoned(out)
        self.inner.attention(self._there(q), found, self._stand_in(kv), layout, layer, rows, **how)
        self._back(found, out)
