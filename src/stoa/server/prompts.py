"""Prompts that are not conversations: text or token ids, one or many."""

from __future__ import annotations

from typing import Any

from stoa.errors import InvalidRequest
from stoa.server.params import check_token_ids
from stoa.server.service import Service

Prompts = str | list[Any]
_ACCEPTED = "text, a list of texts, a list of token ids, or a list of lists of token ids"


def prompt_token_ids(value: Prompts, name: str, service: Service, most: int) -> list[list[int]]:
    """One list of ids for each prompt in the field `name`. Raises InvalidRequest."""
    if isinstance(value, str):
        return [_ids(value, name, service)]
    if not value:
        raise InvalidRequest(f"'{name}' is empty; accepted: {_ACCEPTED}", param=name)
    if isinstance(value[0], int):
        return [_ids(value, name, service)]
    if len(value) > most:
        raise InvalidRequest(f"'{name}' has {len(value)} items; accepted: up to {most}", param=name)
    kind = str if isinstance(value[0], str) else list
    found = []
    for i, item in enumerate(value):
        if not isinstance(item, kind):
            raise InvalidRequest(f"Invalid type for '{name}[{i}]'; accepted: {_ACCEPTED}", param=name)
        found.append(_ids(item, f"{name}[{i}]", service))
    return found


def _ids(prompt: str | list[Any], name: str, service: Service) -> list[int]:
    if isinstance(prompt, str):
        ids = service.tokenizer.encode(prompt)
    else:
        ids = list(prompt)
        check_token_ids(name, ids, service.vocab_size)
    if not ids:
        raise InvalidRequest(f"'{name}' is empty; accepted: at least one token", param=name)
    return ids
