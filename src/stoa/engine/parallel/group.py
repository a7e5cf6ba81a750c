"""Sums and joins over the ranks of one engine: gloo between processes, NCCL between GPUs."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

_c10d: Any = distributed  # torch's stubs leave out half of it
_HOST = "127.0.0.1"  # all ranks are processes of one machine
_TIMEOUT = timedelta(seconds=300)  # a rank that is silent for so long within a step is taken for lost


class Group:
    """All ranks must make the same calls in the same order, with tensors of the same shapes on `device`.

    Every sum is made in the order of ranks, on each rank by itself. So all ranks have the same bits, and a row's do not
    depend on how many rows there are, as they would if the way of summing were chosen by size.
    """

    def __init__(self, rank: int, size: int, store: Any, device: torch.device) -> None:
        """Returns when all ranks are there."""
        self.rank = rank
        self.size = size
        self._backend = _nccl(rank, size, store) if device.type == "cuda" else _gloo(rank, size, store)
        self._device = device
        self._parts = torch.empty(0, dtype=torch.float32, device=device)

    def sum_into(self, partial: Tensor, residual: Tensor) -> None:
        """residual [T, H] += the sum of all ranks' partial [T, H]; both fp32 and contiguous."""
        rows, width = partial.shape
        parts = self._room(self.size * rows * width)
        self._backend._allgather_base(parts.view(self.size * rows, width), partial).wait()
        total, *others = parts.view(self.size, rows, width)
        for other in others:
            total += other
        residual += total

    def gather_columns(self, part: Tensor, widths: Sequence[int]) -> Tensor:
        """part: [n, widths[rank]] fp32 -> [n, sum(widths)] on rank 0, on others what they gave."""
        rows, widest = part.shape[0], max(widths)
        if part.shape[1] < widest:
            padded = part.new_zeros(rows, widest)
            padded[:, : part.shape[1]] = part
            part, own = padded, part
        else:
            own = part
        how = _c10d.GatherOptions()
        how.rootRank = 0
        if self.rank:
            self._backend.gather([], [part], how).wait()
            return own
        parts = [torch.empty_like(part) for _ in widths]
        self._backend.gather([parts], [part], how).wait()
        return torch.cat([p[:, :width] for p, width in zip(parts, widths, strict=True)], dim=1)

    def gathering_bytes(self, rows: int, widths: Sequence[int]) -> int:
        """Memory that rank 0 takes for `gather_columns` of so many rows."""
        return 4 * rows * (self.size * max(widths) + sum(widths))

    def abort(self) -> None:
        """Lets go of ranks that wait on this GPU for one that is gone. From any thread. (gloo notices by itself.)"""
        if self._device.type == "cuda":
            self._backend.abort()

    def _room(self, numbers: int) -> Tensor:
        """Of the largest step, taken once: a recorded step finds it where it was."""
        if len(self._parts) < numbers:
            self._parts = torch.empty(numbers, dtype=torch.float32, device=self._device)
        return self._parts[:numbers]


def open_store(size: int) -> Any:
    """Where ranks find each other, for rank 0 to open: reached by loopback alone."""
    with socket.create_server((_HOST, 0)) as listener:
        port = listener.getsockname()[1]
        return _c10d.TCPStore(
            _HOST, port, size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def join_store(port: int, size: int) -> Any:
    return _c10d.TCPStore(_HOST, port, size, is_master=False, timeout=_TIMEOUT)


def _gloo(rank: int, size: int, store: Any) -> Any:
    options = _c10d.ProcessGroupGloo._Options()
    options._devices = [_c10d.ProcessGroupGloo.create_device(hostname=_HOST)]
    options._timeout = _TIMEOUT
    return _c10d.ProcessGroupGloo(store, rank, size, options)


def _nccl(rank: int, size: int, store: Any) -> Any:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # for ranks to meet; data goes from GPU to GPU
    options = _c10d.ProcessGroupNCCL.Options()
    options._timeout = _TIMEOUT
    return _c10d.ProcessGroupNCCL(store, rank, size, options)
