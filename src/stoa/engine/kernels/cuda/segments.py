"""Which rows of a step use which adapter, as the LoRA kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoa.engine.kernels.cuda.step import StepBuffer

TILE = 16  # rows of one adapter that a program takes: mma.sync's m16 for prompts and single rows alike


@dataclass(frozen=True)
class CudaAdapter:
    """An adapter in pool memory; see lora.py for what lies there."""

    address: int
    nbytes: int


@dataclass(frozen=True)
class DeviceSegments:
    """Tile i: `tiles[i, 1]` rows from row `tiles[i, 0]`, all with the adapter at address `tiles[i, 2]`. 0 rows: padding."""

    num_tiles: int  # padding included
    tiles: Tensor  # int64 [num_tiles, 3]
    adapted: Tensor  # int32 [T]: has the row an adapter?


@dataclass
class Segments:
    """One step's, on the host; on the device once somebody asks."""

    starts: Sequence[int]
    adapters: Sequence[CudaAdapter | None]
    _sent: DeviceSegments | None = field(default=None, init=False)

    def tiles(self) -> NDArray[np.int64]:
        """[num_tiles, 3], see `DeviceSegments.tiles`."""
        found = [
            (first, min(TILE, self.starts[g + 1] - first), adapter.address)
            for g, adapter in enumerate(self.adapters)
            if adapter is not None
            for first in range(self.starts[g], self.starts[g + 1], TILE)
        ]
        return np.asarray(found, dtype=np.int64).reshape(-1, 3)

    def sent(self, device: torch.device) -> DeviceSegments:
        """For an eager step."""
        if self._sent is None:
            tiles = self.tiles()
            buffer = StepBuffer(segments_room(self.starts[-1], len(tiles)), device)
            fill_segments(buffer, tiles)
            buffer.send(self.starts[-1])
            self._sent = device_segments(buffer, len(tiles))
        return self._sent


def segments_room(rows: int, tiles: int) -> dict[str, tuple[type[np.signedinteger], int]]:
    return {"lora_tiles": (np.int64, 3 * tiles), "adapted": (np.int32, rows)}


def fill_segments(buffer: StepBuffer, tiles: NDArray[np.int64]) -> None:
    """Writes into arrays of `segments_room`, padding where they are longer."""
    into = buffer.arrays["lora_tiles"]
    into[: tiles.size] = tiles.ravel()
    into[tiles.size :] = 0
    adapted = buffer.arrays["adapted"]
    adapted[:] = 0
    for first, rows, _ in tiles:
        adapted[first : first + rows] = 1


def device_segments(buffer: StepBuffer, num_tiles: int) -> DeviceSegments:
    return DeviceSegments(num_tiles, buffer.tensors["lora_tiles"].view(-1, 3), buffer.tensors["adapted"])
