"""A step's layer operations as a program that C plays; see csrc/program.c."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, KVLayout, Linear, Program
from stoa.engine.kernels.structs import CallStruct

if TYPE_CHECKING:
    from stoa.engine.parallel.group import Group


class Recorder:
    """The layer operations of `CpuKernels`, noted instead of done: the tensors' addresses, not their lengths."""

    LINEAR, RMS_NORM, SILU_MUL, ROPE_APPEND, ATTENTION = range(5)  # as in csrc/program.c

    def __init__(self, layout_of: Callable[[KVLayout], int], play: Callable[..., None]) -> None:
        """`layout_of`: address of a layout's structure, which lives on; `play`: makes an array of calls."""
        self._layout_of = layout_of
        self._play = play
        self._calls: list[CallStruct] = []

    def program(self) -> Program:
        return functools.partial(self._play, (CallStruct * len(self._calls))(*self._calls))

    def _note(self, op: int, pointers: Sequence[Any], numbers: Sequence[int], d: float = 0.0) -> None:
        addresses = [p.data_ptr() if isinstance(p, Tensor) else p for p in pointers]
        self._calls.append(CallStruct(op, (c_void_p * 7)(*addresses), (c_int64 * 3)(*numbers), d))

    def linear(
        self, x: Tensor, w: Linear, out: Tensor, *, lora: Any = None, index: int = 0, accumulate: bool = False
    ) -> None:
        self._note(self.LINEAR, (x, out, w.address), (index, out.dtype == torch.float32, accumulate))  # type: ignore[attr-defined]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        self._note(self.RMS_NORM, (x, weight, out), (x.shape[1],), eps)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        self._note(self.SILU_MUL, (gate_up, out), (out.shape[1],))

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int,
        rows: AttentionRows, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        pointers = (qkv, q_out, rope, kv, self._layout_of(layout), q_norm, k_norm)
        self._note(self.ROPE_APPEND, pointers, (layer, q_out.shape[1] // layout.head_dim), eps)

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: AttentionRows,
        *, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        pointers = (q, out, kv, self._layout_of(layout))
        self._note(self.ATTENTION, pointers, (layer, q.shape[1] // layout.head_dim, window), scale)

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        raise NotImplementedError("what C plays knows of no other ranks")
