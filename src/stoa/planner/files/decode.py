"""Text of TOML or YAML into a `Document`. Every refusal names the file and the key."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stoa.errors import ConfigError
from stoa.planner.files.document import Document

_STRUCT = msgspec.inspect.StructType


def read_document(path: Path) -> Document:
    """By its ending: .toml, .yaml, .yml. ConfigError for what cannot be read, unknown keys, and values of another kind."""
    data = _plain(_parsed(path))
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: accepted: tables such as [demand] and [[service]]", param="document")
    _check_keys(path, data, msgspec.inspect.type_info(Document), "")
    try:
        return msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".") or "document"
        raise ConfigError(f"{path}: {key}: {message.replace('`', '')}", param=key) from None


def _parsed(path: Path) -> Any:
    import yaml  # of no use but here, and slow to import

    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
        if path.suffix != ".toml":
            raise ConfigError(f"{path}: accepted: a file named .toml, .yaml or .yml", param="document")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="document") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}", param="document") from None


def _plain(value: Any) -> Any:
    """Both formats know dates, and one even hours such as 8:00; here they are text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _check_keys(path: Path, value: Any, kind: msgspec.inspect.Type, at: str) -> None:
    """ConfigError for the first unknown key, with those that are known there."""
    if isinstance(kind, msgspec.inspect.VarTupleType) and isinstance(value, list):
        for i, each in enumerate(value):
            _check_keys(path, each, kind.item_type, f"{at}[{i}]")
    if not (isinstance(kind, _STRUCT) and isinstance(value, dict)):
        return
    known = {f.encode_name: f.type for f in kind.fields}
    for key, each in value.items():
        name = f"{at}.{key}".lstrip(".")
        if key not in known:
            where = f" in {at}" if at else ""
            raise ConfigError(
                f"{path}: {name}: there is no such key; accepted{where}: {', '.join(known)}", param=name
            )
        _check_keys(path, each, known[key], name)
