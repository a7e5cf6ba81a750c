"""Models and adapters to measure with, from the words on the command line."""

from __future__ import annotations

from pathlib import Path

from stoa.bench.synthetic import SHAPES, write_adapter, write_model
from stoa.demo import BASE_DIR
from stoa.engine import AdapterRef
from stoa.engine.adapters.peft import read_adapter
from stoa.engine.model.config import read_model_config
from stoa.errors import ConfigError


def model_folder(model: str, cache: Path, device: str = "cpu") -> Path:
    """The bundled model ("demo"), a folder, or a shape of `SHAPES`, whose random weights are written once; on a GPU they
    are drawn in seconds."""
    if model in SHAPES:
        folder = cache / "bench" / model
        write_model(model, folder, device=draws_on(device))
        return folder
    folder = BASE_DIR if model == "demo" else Path(model)
    if not folder.is_dir():
        raise ConfigError(f"model {model!r} is neither a folder nor one of demo, {', '.join(SHAPES)}")
    return folder


def adapter_refs(
    folder: Path, count: int, rank: int, cache: Path, device: str = "cpu", folders: int = 0
) -> list[AdapterRef]:
    """Adapters of random weights for the model in `folder`, written once, checked and hashed as when registered.

    With `folders` no more than so many are written. The others are the same files under other owners' names: to the engine,
    which shares nothing between owners, adapters of their own."""
    config = read_model_config(folder)
    written = []
    for i in range(min(count, folders or count)):
        path = cache / "bench" / f"{folder.name}-r{rank}" / f"adapter-{i:03d}"
        write_adapter(folder / "config.json", path, rank=rank, seed=i, device=draws_on(device))
        written.append(AdapterRef(id=read_adapter(path, config, max_rank=4096).id, path=str(path)))
    refs = list(written)
    for i in range(len(written), count):
        ref = written[i % len(written)]
        refs.append(AdapterRef(id=f"owner-{i // len(written)}:{ref.id}", path=ref.path))
    return refs


def draws_on(device: str) -> str:
    """Where random numbers are drawn for an engine on `device`: on the CPU if there is no GPU but its interpreter."""
    if device == "cpu":
        return device
    from stoa.engine.kernels.cuda.device import find_gpu

    return find_gpu().device.type
