"""Text of TOML or YAML into a `Document`. Every refusal names the file and the key."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stoa.errors import ConfigError
from stoa.planner.files.document import Document

_STRUCT, _LIST = msgspec.inspect.StructType, msgspec.inspect.VarTupleType


def read_document(path: Path) -> Document:
    """By its ending: .toml, .yaml, .yml. ConfigError for what cannot be read, unknown keys, and values of another kind."""
    try:
        data = _plain(_parsed(path))
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply", param="document") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: accepted: tables such as [demand] and [[service]]", param="document")
    _check_keys(path, data, msgspec.inspect.type_info(Document), "")
    try:
        return msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".") or "document"
        accepted = _accepted(_kind_at(key))
        raise ConfigError(
            f"{path}: {key}: {message.replace('`', '')}" + (f"; accepted: {accepted}" if accepted else ""),
            param=key,
        ) from None


def _kind_at(key: str) -> msgspec.inspect.Type | None:
    """What may stand at a key such as place[1].machine[0].count."""
    kind: msgspec.inspect.Type | None = msgspec.inspect.type_info(Document)
    for name in re.findall(r"\w+|\[", key.replace("...", "")):
        if name == "[":
            kind = next((k.item_type for k in _each(kind) if isinstance(k, _LIST)), None)
        elif not name.isdigit():
            fields = [f for k in _each(kind) if isinstance(k, _STRUCT) for f in k.fields]
            kind = next((f.type for f in fields if f.encode_name == name), None)
    return kind


def _each(kind: msgspec.inspect.Type | None) -> Sequence[msgspec.inspect.Type | None]:
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def _accepted(kind: msgspec.inspect.Type | None) -> str:
    """In words; "" for what needs none."""
    return " or ".join(filter(None, map(_words, _each(kind))))


def _words(kind: msgspec.inspect.Type | None) -> str:
    match kind:
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(map(str, values))
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"a list, [...], of {_accepted(item) or 'tables'}"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number{_between(low, None, high)}"
        case msgspec.inspect.FloatType(ge=least, gt=low, le=high):
            return f"a number{_between(least, low, high)}"
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.StrType():
            return "text"
    return ""


def _between(least: float | None, above: float | None, most: float | None) -> str:
    low = f" from {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
    return low + (f" to {most:g}" if most is not None else "")


def _parsed(path: Path) -> Any:
    import yaml  # of no use but here, and slow to import

    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".yaml", ".yml"):
            _check_twice(yaml.compose(text, yaml.SafeLoader))
            return yaml.safe_load(text)
        if path.suffix != ".toml":
            raise ConfigError(f"{path}: accepted: a file named .toml, .yaml or .yml", param="document")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="document") from None
    except (ValueError, yaml.YAMLError) as error:  # of its syntax, its letters, its numbers
        raise ConfigError(f"{path}: {' '.join(str(error).split())}", param="document") from None


def _check_twice(node: Any) -> None:
    """ConfigError for a key that a mapping of YAML has twice: the later one would silently hold."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_twice(each)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
            _check_twice(value)


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
