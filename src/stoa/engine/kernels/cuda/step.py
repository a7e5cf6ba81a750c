"""What a step's kernels are told, as numbers in GPU memory: one copy carries all of them over.

Eager steps take as many numbers as they have. A graph has a buffer of its own, of the most it can take, whose
addresses stay: rows that are missing are padding, which no kernel lets leave a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows

SPLIT = 512  # keys that one program of attention takes: splits begin at its multiples, whatever the batch
_ALIGN = 16
_TORCH = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


class StepBuffer:
    """Named arrays in one piece of GPU memory. `room`: name -> (dtype, most values); the last one may be long and is
    copied as far as it is filled."""

    def __init__(self, room: Mapping[str, tuple[type[np.signedinteger], int]], device: torch.device) -> None:
        self._spans: dict[str, tuple[int, int]] = {}
        at = 0
        for name, (dtype, count) in room.items():
            size = count * np.dtype(dtype).itemsize
            self._spans[name] = (at, size)
            at += -(-size // _ALIGN) * _ALIGN
        self._last = list(room)[-1]
        pinned = device.type == "cuda"
        self._sent = torch.cuda.Event() if pinned else None
        self._host = torch.empty(at, dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.empty(at, dtype=torch.uint8, device=device)
        self.arrays: dict[str, NDArray[np.signedinteger]] = {}  # to be filled
        self.tensors: dict[str, Tensor] = {}  # what kernels read
        memory = self._host.numpy()
        for name, (dtype, _) in room.items():
            first, size = self._spans[name]
            self.arrays[name] = memory[first : first + size].view(dtype)
            self.tensors[name] = self._device[first : first + size].view(_TORCH[np.dtype(dtype)])

    def await_sent(self) -> None:
        """Before it is filled again: what was sent last has been read."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, last: int) -> None:
        """Copies everything, of the last array the first `last` values. Returns before the copy is done."""
        first, _ = self._spans[self._last]
        end = first + last * self.arrays[self._last].itemsize
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        if self._sent is not None:
            self._sent.record()


@dataclass(frozen=True)
class DeviceRows:
    """`AttentionRows` as kernels read it.

    Blocks of sequence s are blocks[block_start[s]:block_start[s + 1]]. A tile is some rows of one sequence that read its
    keys together; a tile of 0 rows is padding. A row with slot -1 is padding: its key and value are written nowhere.
    """

    count: int  # rows T, padding included
    num_tiles: int  # padding included
    num_splits: int  # of the longest context, at least
    block_start: Tensor  # int32 [S + 1]
    positions: Tensor  # int32 [T]
    slots: Tensor  # int64 [T]
    tiles: Tensor  # int32 [num_tiles, 4]: sequence, first row, rows, unused
    blocks: Tensor  # int32 [sum of blocks]


def rows_room(rows: int, seqs: int, tiles: int, blocks: int) -> dict[str, tuple[type[np.signedinteger], int]]:
    return {
        "slots": (np.int64, rows),
        "positions": (np.int32, rows),
        "block_start": (np.int32, seqs + 1),
        "tiles": (np.int32, 4 * tiles),
        "blocks": (np.int32, blocks),
    }


def query_tiles(rows: AttentionRows, rows_per_tile: int) -> NDArray[np.int32]:
    """[num_tiles, 4], see `DeviceRows.tiles`."""
    starts = rows.query_start
    counts = np.diff(starts)
    tiles = -(-counts // rows_per_tile)
    seq = np.repeat(np.arange(len(counts)), tiles)
    nth = np.arange(len(seq)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    first = starts[:-1][seq] + nth * rows_per_tile
    left = np.minimum(starts[1:][seq] - first, rows_per_tile)
    return np.stack((seq, first, left, np.zeros_like(seq)), axis=1).astype(np.int32)


def fill_rows(buffer: StepBuffer, rows: AttentionRows, tiles: NDArray[np.int32], block_size: int) -> int:
    """Writes `rows` into arrays of `rows_room`, padding where they are longer; returns how many blocks there are."""
    into = buffer.arrays
    held = -(-rows.context_len // block_size)
    used = np.arange(rows.block_table.shape[1]) < held[:, None]
    blocks = rows.block_table[used]
    for name, values, padding in (
        ("slots", rows.slots, -1), ("positions", rows.positions, 0), ("tiles", tiles.ravel(), 0),
        ("blocks", blocks, None),
    ):  # fmt: skip
        into[name][: len(values)] = values
        if padding is not None:
            into[name][len(values) :] = padding
    into["block_start"][0] = 0
    np.cumsum(held, out=into["block_start"][1 : len(held) + 1])
    into["block_start"][len(held) + 1 :] = len(blocks)
    return len(blocks)


def device_rows(buffer: StepBuffer, count: int, num_tiles: int, longest: int) -> DeviceRows:
    """What a filled buffer says; `longest`: tokens of the longest context."""
    t = buffer.tensors
    return DeviceRows(
        count, num_tiles, -(-longest // SPLIT), t["block_start"], t["positions"], t["slots"],
        t["tiles"].view(-1, 4), t["blocks"],
    )  # fmt: skip


def upload_rows(rows: AttentionRows, rows_per_tile: int, block_size: int, device: torch.device) -> DeviceRows:
    """For one eager step."""
    tiles = query_tiles(rows, rows_per_tile)
    most = rows.block_table.size
    buffer = StepBuffer(rows_room(len(rows.positions), len(rows.context_len), len(tiles), most), device)
    buffer.send(fill_rows(buffer, rows, tiles, block_size))
    return device_rows(buffer, len(rows.positions), len(tiles), int(rows.context_len.max()))
