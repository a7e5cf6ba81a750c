"""Memory that kernels hand each other, made once and made larger when need be.

`generation` changes whenever something moves or kernels must be started otherwise: graphs made before are void then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from stoa.engine.kernels.cuda import attention, linear
from stoa.engine.kernels.cuda.device import Gpu
from stoa.engine.kernels.cuda.linear import CudaLinear

_SPLIT_BYTES = 64 << 20  # for parts of attention
_LEAST_WIDTH = 64


class Scratch:
    """All methods but `expect` are for the thread that runs the steps."""

    def __init__(self, gpu: Gpu) -> None:
        self.generation = 0
        self._gpu = gpu
        self._linears: dict[tuple[int, int, int], CudaLinear] = {}
        self._flat: dict[str, Tensor] = {}
        self._rows = 0  # of the largest step so far
        self._partials: tuple[int, linear.Workspace] | None = None
        self._splits: dict[int, attention.Workspace] = {}
        self._width = _LEAST_WIDTH  # columns of h: at least any adapter's ranks on one linear
        self._adapted: set[int] = set()
        self._lock = threading.Lock()

    # -- what there is to serve

    def serve(self, packed: CudaLinear) -> None:
        """`packed` will be used from now on."""
        self._linears[packed.n, packed.k, packed.bits] = packed
        self._partials = None

    def expect(self, ranks: Sequence[Sequence[int]]) -> None:
        """An adapter with these ranks, for each linear and part, will be used. From any thread."""
        widest = max(map(sum, ranks))
        touched = {i for i, group in enumerate(ranks) if any(group)}
        with self._lock:
            if widest <= self._width and touched <= self._adapted:
                return
            self._width = max(self._width, 1 << (widest - 1).bit_length())
            self._adapted = self._adapted | touched
            self.generation += 1

    def adapted(self, index: int) -> bool:
        """Has any adapter something for this linear?"""
        return index in self._adapted

    # -- memory

    def delta(self, rows: int, n: int) -> Tensor:
        """fp32 [rows, n]."""
        return self._get("delta", rows, n).view(rows, n)

    def shrunk(self, pieces: int, rows: int) -> Tensor:
        """fp32 [pieces, rows, width]."""
        width = self._width
        return self._get("shrunk", rows, pieces * width).view(pieces, rows, width)

    def partials(self, rows: int) -> linear.Workspace:
        self._rows = max(self._rows, rows)
        if self._partials is None or self._partials[0] < linear.row_class(rows):
            reached = linear.row_class(rows)
            self._partials = (
                reached,
                linear.Workspace.of([*self._linears.values()], reached, self._gpu.device),
            )
            self.generation += 1
        return self._partials[1]

    def splits(self, head_dim: int) -> attention.Workspace:
        if head_dim not in self._splits:
            parts = _SPLIT_BYTES // (4 * (head_dim + 2))
            self._splits[head_dim] = attention.workspace(
                parts, head_dim, self._gpu.multiprocessors, self._gpu.device
            )
            self.generation += 1
        return self._splits[head_dim]

    def _get(self, name: str, rows: int, width: int) -> Tensor:
        """fp32 [rows * width]."""
        have = self._flat.pop(name, None)
        if have is None or have.numel() < rows * width:
            have = None  # two would not fit, perhaps
            self._rows = max(self._rows, rows)
            have = torch.empty(self._rows * width, dtype=torch.float32, device=self._gpu.device)
            self.generation += 1
        self._flat[name] = have
        return have[: rows * width]
