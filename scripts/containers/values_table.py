"""The table of the chart's values in docs/containers.md, made of values.yaml: `values_table.py [--check]`.

A comment above a key describes the key and all below it; a key without one is a group, and its keys have comments.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
VALUES = ROOT / "deploy/helm/stoa/values.yaml"
DOCS = ROOT / "docs/containers.md"
BEGIN, END = "<!-- values: made by scripts/containers/values_table.py -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"( *)([\w-]+):(?: |$)")


class Value(NamedTuple):
    path: str  # with dots
    default: Any
    text: str  # empty: nobody described it


def read_values(text: str) -> list[Value]:
    """Every described key, and every leaf that nobody described."""
    comments = dict(_comments(text))
    return list(_walk(yaml.safe_load(text), (), comments))


def _comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of a key, the comment right above it)."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        if key := _KEY.match(line):
            indent = len(key[1])
            path = [*((i, name) for i, name in path if i < indent), (indent, key[2])]
            if comment:
                yield tuple(name for _, name in path), " ".join(comment)
        comment = []


def _walk(value: Any, path: tuple[str, ...], comments: dict[tuple[str, ...], str]) -> Iterator[Value]:
    if path in comments or not isinstance(value, dict):
        yield Value(".".join(path), value, comments.get(path, ""))
    else:
        for key, below in value.items():
            yield from _walk(below, (*path, key), comments)


def table(values: list[Value]) -> str:
    rows = ["| value | default | |", "|---|---|---|"]
    for path, default, text in values:
        shown = default if isinstance(default, str) else json.dumps(default, separators=(", ", ": "))
        rows.append(f"| `{path}` | {f'`{shown}`' if shown else ''} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def with_table(docs: str, values: list[Value]) -> str:
    before, rest = docs.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(values)}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the table is old")
    args = parser.parse_args()
    old = DOCS.read_text(encoding="utf-8")
    new = with_table(old, read_values(VALUES.read_text(encoding="utf-8")))
    if args.check and new != old:
        sys.exit("docs/containers.md is old: python scripts/containers/values_table.py")
    DOCS.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
