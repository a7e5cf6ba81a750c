"""JSON files of ours that say their version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from stoa.checks import unique
from stoa.errors import ConfigError

T = TypeVar("T")


class _Version(msgspec.Struct, frozen=True):
    version: int


def read_bytes(path: Path) -> bytes:
    """Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="plan") from None


def decode(
    text: bytes | str, source: str, kind: type[T], version: int, check: Callable[[T], None], writer: str
) -> T:
    """Checked. ConfigError that names the source and what is accepted: files that `writer` has written."""
    try:
        json.loads(text, object_pairs_hook=_once)
        found = msgspec.json.decode(text, type=_Version).version
        if found != version:
            raise ConfigError(f"version is {found}; accepted: {version}", param="version")
        file = msgspec.json.decode(text, type=kind)
        check(file)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", param=error.param) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}; accepted: what {writer} writes", param="plan") from None
    return file


def _once(pairs: list[tuple[str, object]]) -> None:
    """Of two values of one key the later would silently hold."""
    unique("key", (name for name, _ in pairs))


def write_bytes(text: bytes, path: Path) -> None:
    """In one step: whoever reads meanwhile finds the old file or the new one. Raises ConfigError."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(text)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", param="plan") from None
