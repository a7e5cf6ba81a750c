"""Adapters in host memory, as they will lie on the GPU: bringing one there is one copy, beside the steps."""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import Tensor


class Stager:
    """Copies on a stream of its own. For any thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def room(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] in host memory, pinned if the system allows it: the GPU then reads it at the bus's full speed.
        (torch's own pinned memory comes in powers of two, which half of an adapter would waste.)"""
        room = torch.empty(nbytes, dtype=torch.uint8)
        if self._stream is not None:
            runtime = torch.cuda.cudart()
            if int(runtime.cudaHostRegister(room.data_ptr(), nbytes, 0)) == 0:
                weakref.finalize(room.untyped_storage(), _let_go, runtime, room.data_ptr())
        return room

    def copy(self, host: Tensor, dst: Tensor) -> None:
        """Returns when it is done. Steps that were started before may still read what was at `dst`: it waits for them."""
        if self._stream is None:
            dst.copy_(host)
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            dst.copy_(host, non_blocking=True)
        self._stream.synchronize()


def _let_go(runtime: object, address: int) -> None:
    with contextlib.suppress(RuntimeError):  # at the end of the process CUDA may be gone
        runtime.cudaHostUnregister(address)  # type: ignore[attr-defined]
