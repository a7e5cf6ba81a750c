"""Models and adapters to measure with, from the words on the command line."""

from __future__ import annotations

from pathlib import Path

from stoa.bench.synthetic import SHAPES, write_adapter, write_model
from stoa.demo import BASE_DIR
from stoa.engine import AdapterRef
from stoa.engine.adapters.peft import read_adapter
from stoa.engine.model.config import read_model_config
from stoa.errors import ConfigError


def model_folder(model: str, cache: Path) -> Path:
    """The bundled model ("demo"), a folder, or a shape of `SHAPES`, whose random weights are written once."""
    if model in SHAPES:
        folder = cache / "bench" / model
        write_model(model, folder)
        return folder
    folder = BASE_DIR if model == "demo" else Path(model)
    if not folder.is_dir():
        raise ConfigError(f"model {model!r} is neither a folder nor one of demo, {', '.join(SHAPES)}")
    return folder


def adapter_refs(folder: Path, count: int, rank: int, cache: Path) -> list[AdapterRef]:
    """Adapters of random weights for the model in `folder`, written once, checked and hashed as when registered."""
    config = read_model_config(folder)
    refs = []
    for i in range(count):
        path = cache / "bench" / f"{folder.name}-r{rank}" / f"adapter-{i:03d}"
        write_adapter(folder / "config.json", path, rank=rank, seed=i)
        refs.append(AdapterRef(id=read_adapter(path, config, max_rank=4096).id, path=str(path)))
    return refs
