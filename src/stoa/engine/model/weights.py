"""Reads a base model's tensors from safetensors, single or sharded, one at a time and checked."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stoa.engine.kernels import all_finite
from stoa.engine.model.config import read_json
from stoa.errors import InvalidModel, UnsupportedModel

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Checkpoint:
    """Named tensors of a model folder. Files are memory-mapped; nothing is read until asked for, and what was
    read counts as this process's memory until `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._where = self._locate()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] = ()) -> Tensor:
        """That part of the tensor, any float dtype. Raises InvalidModel if it is missing, misshapen or not finite."""
        if name not in self._where:
            raise InvalidModel(f"{self.folder} has no tensor {name!r}")
        try:
            tensor: Tensor = self._open(self._where[name]).get_tensor(name)
        except SafetensorError as error:
            raise InvalidModel(f"tensor {name!r} in {self._where[name]} cannot be read: {error}") from None
        if tuple(tensor.shape) != shape:
            raise InvalidModel(
                f"tensor {name!r} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
            )
        if tensor.dtype not in _FLOATS:
            raise UnsupportedModel(f"tensor {name!r} is {tensor.dtype}; accepted: bf16, fp16, fp32")
        tensor = tensor[part].contiguous() if part else tensor
        if not all_finite(tensor, pooled=True):
            raise InvalidModel(f"tensor {name!r} holds NaN or infinite values")
        return tensor

    def _locate(self) -> dict[str, str]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise InvalidModel(f"{index} has no weight_map")
            for file in weight_map.values():
                if not isinstance(file, str) or Path(file).name != file:
                    raise InvalidModel(f"{index} names a shard outside the folder: {file!r}")
            return dict(weight_map)
        single = self.folder / "model.safetensors"
        if not single.exists():
            raise self._no_weights()
        return dict.fromkeys(self._open(single.name).keys(), single.name)

    def _no_weights(self) -> InvalidModel:
        pickles = sorted(p.name for p in self.folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl"))
        if pickles:
            return InvalidModel(
                f"{self.folder} holds pickled weights ({pickles[0]}), which can run code when read; "
                "accepted: model.safetensors"
            )
        return InvalidModel(f"{self.folder} has no model.safetensors or model.safetensors.index.json")

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            if not path.exists():
                raise InvalidModel(f"{path} does not exist, but the index names it")
            try:
                self._files[file] = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise InvalidModel(f"{path} is not a whole safetensors file: {error}") from None
        return self._files[file]
