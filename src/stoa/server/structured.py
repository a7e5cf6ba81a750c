"""Constraints on the output in vLLM's words: `structured_outputs`."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stoa.engine.request import Grammar
from stoa.errors import InvalidRequest


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them. `grammar` is a Lark grammar of llguidance; `json` a schema, as text or as an object."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    grammar: str | None = None


def structured_grammar(wanted: StructuredOutputs | None) -> Grammar | None:
    """Raises InvalidRequest unless there is exactly one constraint, or none."""
    if wanted is None:
        return None
    found: list[Grammar] = []
    if wanted.json is not None:
        schema = wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json, ensure_ascii=False)
        found.append(Grammar(kind="json_schema", source=schema))
    if wanted.json_object:
        found.append(Grammar(kind="json_object"))
    if wanted.regex is not None:
        found.append(Grammar(kind="regex", source=wanted.regex))
    if wanted.grammar is not None:
        found.append(Grammar(kind="lark", source=wanted.grammar))
    if len(found) > 1:
        message = (
            "'structured_outputs' has several constraints; accepted: one of json, json_object, regex, grammar"
        )
        raise InvalidRequest(message, param="structured_outputs")
    return found[0] if found else None
