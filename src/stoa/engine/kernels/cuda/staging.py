"""Adapters on their way from host memory to the pool, beside the steps.

They wait in ordinary memory, as they will lie on the GPU, and pass through two small pinned buffers in turn: while one is
copied to the GPU the other is filled. (Pinning each adapter where it waits would save that pass, but holds up every
other thread that talks to the driver meanwhile.)
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_PINNED_BYTES = 16 << 20


class Stager:
    """For any thread; one adapter at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._pinned: list[Tensor] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._sent = [torch.cuda.Event() for _ in range(2)]
            self._pinned = [torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def copy(self, host: Tensor, dst: Tensor) -> None:
        """uint8 to uint8. Returns when it is done. Steps that were started before may still read what was at `dst`: it
        waits for them."""
        if not self._pinned:
            dst.copy_(host)
            return
        with self._lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            for i, (piece, to) in enumerate(
                zip(host.split(_PINNED_BYTES), dst.split(_PINNED_BYTES), strict=True)
            ):
                self._sent[i % 2].synchronize()
                pinned = self._pinned[i % 2][: len(piece)]
                pinned.copy_(piece)
                to.copy_(pinned, non_blocking=True)
                self._sent[i % 2].record(self._stream)
            self._stream.synchronize()
