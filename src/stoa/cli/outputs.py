"""Files that commands write when they are done."""

from __future__ import annotations

import os
from pathlib import Path

from stoa.errors import ConfigError


def check_outputs(**paths: Path | None) -> None:
    """Before the work whose results go there; by option. Raises ConfigError."""
    given = [path for path in paths.values() if path is not None]
    if len(set(given)) < len(given):
        raise ConfigError(
            f"the same file for several of {', '.join(f'--{name}' for name in paths)}", param="out"
        )
    for name, path in paths.items():
        if path is not None and (fault := _fault(path)) is not None:
            raise ConfigError(f"--{name} {path}: {fault}", param=name)


def make_folder(**folders: Path) -> None:
    """Where results go, by option. Raises ConfigError."""
    for name, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--{name} {folder}: {error.strerror}", param=name) from None


def _fault(path: Path) -> str | None:
    if path.is_dir():
        return "this is a folder; name a file"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "it may not be written"
    return None
