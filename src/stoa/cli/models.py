"""From the name of a model to the folder that holds it, and its adapters on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stoa.config import Settings
from stoa.demo import ADAPTERS_DIR, BASE_DIR, MODEL_ID
from stoa.engine.model.config import read_model_config
from stoa.errors import ConfigError

if TYPE_CHECKING:
    from stoa.tenancy.adapters import ProjectAdapters


def resolve_model(settings: Settings) -> tuple[str, Path]:
    """(id to serve it under, folder). ConfigError if it is neither bundled, a folder, nor to be had from a hub."""
    name = settings.model
    if name == "demo":
        return settings.served_model_name or MODEL_ID, BASE_DIR
    folder = Path(name).expanduser()
    if folder.is_dir():
        return settings.served_model_name or folder.resolve().name, folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(
            f"model {name!r} is not a folder; accepted: demo, a folder, a hub id such as owner/name"
        )
    return settings.served_model_name or name, _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:
        raise ConfigError(f"model {name!r} cannot be fetched from the hub: {error}") from None


def open_adapters(settings: Settings, model_id: str, folder: Path) -> ProjectAdapters:
    """The model's adapters under the home folder, of all projects."""
    from stoa.tenancy.adapters import ProjectAdapters

    return ProjectAdapters(
        settings.home_path / "adapters",
        read_model_config(folder),
        settings.max_lora_rank,
        reserved=(model_id,),
    )


def folders_in_place(settings: Settings) -> list[Path]:
    """Folders whose adapters are served where they lie."""
    found = [ADAPTERS_DIR] if settings.model == "demo" else []
    return [*found, Path(settings.adapters).expanduser()] if settings.adapters else found
