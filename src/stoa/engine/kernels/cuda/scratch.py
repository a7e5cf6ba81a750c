"""Memory that kernels hand each other, made once and made larger when need be.

`moves` counts how often something has come to lie elsewhere, `changes` how often LoRA's launches have become others: graphs
made before are void then. All of it belongs to the thread that runs the steps, but for `expect`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from stoa.engine.kernels.cuda import attention, linear
from stoa.engine.kernels.cuda.device import Gpu
from stoa.engine.kernels.cuda.linear import CudaLinear

_SPLIT_BYTES = 96 << 20  # for parts of attention: 64 rows of 32 heads with contexts of 64 splits
_LEAST_WIDTH = 64

Ranks = Sequence[Sequence[int]]


class Scratch:
    def __init__(self, gpu: Gpu) -> None:
        self.moves = 0
        self.changes = 0
        self._gpu = gpu
        self._linears: dict[tuple[int, int, int], CudaLinear] = {}
        self._flat: dict[str, Tensor] = {}
        self._partials: tuple[int, linear.Workspace] | None = None
        self._splits: dict[int, attention.Workspace] = {}
        self._width = _LEAST_WIDTH  # columns of h: at least any adapter's ranks on one linear
        self._adapted: frozenset[int] = frozenset()
        self._expected: list[Ranks] = []
        self._lock = threading.Lock()

    # -- what there is to serve

    def serve(self, packed: CudaLinear) -> None:
        """`packed` will be used from now on."""
        self._linears[packed.n, packed.k, packed.bits] = packed
        self._partials = None

    def expect(self, ranks: Ranks) -> None:
        """An adapter with these ranks, for each linear and part, will be used. From any thread; it counts from the next
        step that has adapters."""
        with self._lock:
            self._expected.append(ranks)

    def settle(self) -> None:
        """Before a step that has adapters: takes in which have come."""
        with self._lock:
            expected, self._expected = self._expected, []
        for ranks in expected:
            widest = max(map(sum, ranks))
            touched = {i for i, group in enumerate(ranks) if any(group)}
            if widest > self._width or not touched <= self._adapted:
                self._width = max(self._width, 1 << (widest - 1).bit_length())
                self._adapted |= touched
                self.changes += 1

    def forget_adapters(self) -> None:
        """No adapter is in use: launches for those that were are not needed."""
        self.settle()
        self._width, self._adapted = _LEAST_WIDTH, frozenset()
        self.changes += 1

    def adapted(self, index: int) -> bool:
        """Has any adapter something for this linear?"""
        return index in self._adapted

    # -- memory

    def delta(self, rows: int, n: int) -> Tensor:
        """fp32 [rows, n]. Of each n its own: the output head has many columns, but few rows."""
        return self._get(f"delta {n}", rows * n).view(rows, n)

    def shrunk(self, pieces: int, rows: int) -> Tensor:
        """fp32 [pieces, rows, width]."""
        width = self._width
        return self._get("shrunk", rows * pieces * width).view(pieces, rows, width)

    def partials(self, rows: int) -> linear.Workspace:
        if self._partials is None or self._partials[0] < linear.row_class(rows):
            self.moves += 1
            self._partials = None
            reached = linear.row_class(rows)
            self._partials = (
                reached,
                linear.Workspace.of([*self._linears.values()], reached, self._gpu.device),
            )
        return self._partials[1]

    def splits(self, head_dim: int) -> attention.Workspace:
        if head_dim not in self._splits:
            self.moves += 1
            parts = _SPLIT_BYTES // (4 * (head_dim + 2))
            self._splits[head_dim] = attention.workspace(
                parts, head_dim, self._gpu.multiprocessors, self._gpu.device
            )
        return self._splits[head_dim]

    def _get(self, name: str, count: int) -> Tensor:
        """fp32 [count]."""
        have = self._flat.get(name)
        if have is None or have.numel() < count:
            self.moves += 1  # before anything else: memory may be short, and what was there is gone then
            self._flat.pop(name, None)
            have = None  # two would not fit, perhaps
            have = self._flat[name] = torch.empty(count, dtype=torch.float32, device=self._gpu.device)
        return have[:count]
