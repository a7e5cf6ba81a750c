"""Where a decoder's weights come from: the model folder, or a file of them packed before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from stoa.engine.kernels.interface import Keeper, Kernels, Linear
from stoa.engine.model.packed import PackedFile, made_from, open_packed, packed_path, write_later
from stoa.engine.model.weights import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Of one matrix of a linear: these rows and columns of the checkpoint's `weight` [shape], those rows of its `bias`."""

    weight: str
    bias: str | None
    shape: tuple[int, int]
    rows: slice
    columns: slice

    @property
    def n(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def k(self) -> int:
        return int(self.columns.stop - self.columns.start)


class Source(Protocol):
    """Names are those of the checkpoint's tensors."""

    def vector(self, name: str, size: int) -> Tensor:
        """fp32 [size]."""
        ...

    def table(self, name: str, shape: tuple[int, int]) -> Tensor:
        """In the compute dtype, contiguous."""
        ...

    def linear(self, parts: Sequence[Part], bits: int) -> Linear:
        """Their outputs side by side."""
        ...

    def release(self) -> None:
        """What was read so far will not be asked for again."""
        ...


class FromCheckpoint:
    """Reads and packs. `made` is what `FromPacked` wants, if there is a keeper."""

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, keeper: Keeper | None) -> None:
        self.checkpoint = checkpoint
        self.kernels = kernels
        self.keeper = keeper
        self.made: dict[str, Tensor] = {}

    def vector(self, name: str, size: int) -> Tensor:
        return self._note(
            name, self.checkpoint.get(name, (size,)).float().contiguous().to(self.kernels.device)
        )

    def table(self, name: str, shape: tuple[int, int]) -> Tensor:
        # copy: the mapped file must be free to vanish once loading is done
        table = self.checkpoint.get(name, shape).to(self.kernels.device, self.kernels.dtype, copy=True)
        return self._note(f"{name}.table", table)

    def linear(self, parts: Sequence[Part], bits: int) -> Linear:
        read = [self.checkpoint.get(p.weight, p.shape, (p.rows, p.columns)) for p in parts]
        added = [
            None if p.bias is None else self.checkpoint.get(p.bias, p.shape[:1], (p.rows,)).float()
            for p in parts
        ]
        linear = self.kernels.pack_linear(read, added, bits)
        if self.keeper is not None:
            data, bias = self.keeper.parts(linear)
            self._note(f"{parts[0].weight}.packed", data)
            if bias is not None:
                self._note(f"{parts[0].weight}.packed.bias", bias)
        return linear

    def release(self) -> None:
        self.checkpoint.release()

    def _note(self, name: str, tensor: Tensor) -> Tensor:
        if self.keeper is not None:
            self.made[name] = tensor
        return tensor


class Unfit(Exception):
    """The packed file lacks something, or has it in another size."""


class FromPacked:
    """Everything is read in place."""

    def __init__(self, file: PackedFile, kernels: Kernels, keeper: Keeper) -> None:
        self.file = file
        self.kernels = kernels
        self.keeper = keeper

    def vector(self, name: str, size: int) -> Tensor:
        return self._get(name, torch.float32, (size,))

    def table(self, name: str, shape: tuple[int, int]) -> Tensor:
        return self._get(f"{name}.table", self.kernels.dtype, shape)

    def linear(self, parts: Sequence[Part], bits: int) -> Linear:
        name = f"{parts[0].weight}.packed"
        data, bias = self.file.get(name), self.file.get(f"{name}.bias")
        if data is None or (bias is None) != all(p.bias is None for p in parts):
            raise Unfit(name)
        linear = self.keeper.linear(
            data,
            bias.view(torch.float32) if bias is not None else None,
            parts[0].k,
            tuple(p.n for p in parts),
            bits,
        )
        if linear is None:
            raise Unfit(name)
        return linear

    def release(self) -> None:
        pass

    def _get(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        found = self.file.get(name)
        if found is None or found.numel() != dtype.itemsize * torch.Size(shape).numel():
            raise Unfit(name)
        return found.view(dtype).view(shape)


def build_from(
    build: Callable[[Source], T],
    folder: Path,
    kernels: Kernels,
    bits: int,
    cache: Path | None,
    share: str = "",
) -> tuple[T, threading.Thread | None]:
    """What `build` makes of packed weights kept in `cache`, where they are those of the folder, else of the folder's own,
    and the thread that then keeps these for the next time. `share`: which of the weights `build` asks for. Raises
    InvalidModel or UnsupportedModel."""
    keeper = kernels.keeper() if cache is not None else None
    if keeper is None or cache is None:
        with Checkpoint(folder) as checkpoint:
            return build(FromCheckpoint(checkpoint, kernels, None)), None
    form = f"{keeper.form}, {bits} bits{share}"
    path, origin = packed_path(folder, cache, form), made_from(folder, form)
    packed = open_packed(path, origin)
    if packed is not None:
        try:
            built = build(FromPacked(packed, kernels, keeper))
        except Unfit:
            pass
        else:
            packed.prefault()
            return built, None
    with Checkpoint(folder) as checkpoint:
        source = FromCheckpoint(checkpoint, kernels, keeper)
        built = build(source)
    return built, write_later(path, source.made, origin)
