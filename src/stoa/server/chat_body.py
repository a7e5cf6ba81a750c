"""The body of a chat request, and what is checked of it before anything is rendered."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stoa.engine.request import Grammar
from stoa.errors import InvalidRequest
from stoa.server.messages import Message
from stoa.server.params import SamplingFields, check_logprobs, check_ranges, out_of_range
from stoa.server.service import Service
from stoa.server.tools import NamedTool, ToolSpec, check_tools

_OWN_TEMPLATE_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "self"})


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None  # accepted; nothing is stored
    modalities: list[str] | None = None
    reasoning_effort: str | None = None  # for templates that know it
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    prompt_cache_key: str | None = None  # accepted: the prefix cache needs no hint
    safety_identifier: str | None = None


def check_chat(body: ChatRequest, service: Service) -> None:
    """Raises InvalidRequest naming the first field that is not accepted."""
    check_ranges(body, service)
    check_logprobs("top_logprobs", body.top_logprobs)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'top_logprobs' is only accepted with 'logprobs': true", param="top_logprobs")
    if body.modalities not in (None, ["text"]):
        raise out_of_range("modalities", body.modalities, '["text"]')
    taken = next((k for k in body.chat_template_kwargs or () if k in _OWN_TEMPLATE_NAMES), None)
    if taken is not None:
        where = f"chat_template_kwargs.{taken}"
        raise InvalidRequest(f"'{where}' is not accepted: the request has a field for it", param=where)
    check_tools(body.tools or ())
    response_grammar(body.response_format)


def response_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    """The constraint that `response_format` asks for."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar(kind="json_object")
    if wanted.type != "json_schema":
        raise out_of_range("response_format.type", wanted.type, "text, json_object, json_schema")
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        missing = "json_schema" if wanted.json_schema is None else "json_schema.schema"
        name = f"response_format.{missing}"
        raise InvalidRequest(f"Missing required parameter: '{name}'", param=name)
    return Grammar(kind="json_schema", source=json.dumps(wanted.json_schema.schema, ensure_ascii=False))


def conversation(body: ChatRequest) -> bytes:
    """JSON of what a server that renders prompts itself needs; null fields left out."""
    names = (
        "messages",
        "response_format",
        "tools",
        "chat_template_kwargs",
        "add_generation_prompt",
        "reasoning_effort",
    )
    return msgspec.json.encode(_given({name: getattr(body, name) for name in names}))


def _given(value: Any) -> Any:
    found = msgspec.to_builtins(value)
    if isinstance(found, dict):
        return {k: _given(v) for k, v in found.items() if v is not None}
    return [_given(v) for v in found] if isinstance(found, list) else found
