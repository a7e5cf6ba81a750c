"""docs/planner-input.md tells of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.inspect import Field, StructType, VarTupleType, type_info

from stoa.planner.files.decode import read_document
from stoa.planner.files.document import Document

DOCS = Path(__file__).parents[3] / "docs" / "planner-input.md"


def keys(kind: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Each key with its default."""
    for field in kind.fields:
        name, inner = f"{at}.{field.encode_name}".lstrip("."), field.type
        if isinstance(inner, VarTupleType) and isinstance(inner.item_type, StructType):
            yield from keys(inner.item_type, f"{name}[]")
        elif isinstance(inner, StructType):
            yield from keys(inner, name)
        else:
            yield name, default(field)


def default(field: Field) -> str:
    value = field.default
    if field.required:
        return "required"
    if value is msgspec.NODEFAULT or value is None or value == ():
        return "none"
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case str():
            return f'`"{value}"`'
        case tuple():
            return f"`{list(value)}`".replace("'", '"')
        case _:
            return f"`{value:g}`"


def test_every_key_is_described_with_its_default() -> None:
    """And no other."""
    rows = re.findall(r"^\| `([\w.\[\]]+)` \|.*\| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == dict(keys(type_info(Document)))


def test_the_example_is_a_document(tmp_path: Path) -> None:
    """The files it names are not there, but its keys are right."""
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "plan.toml"
    path.write_text(example)
    assert [place.name for place in read_document(path).place] == ["cellar", "ireland"]
