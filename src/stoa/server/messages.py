"""Messages of a chat request, as clients write them and as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from stoa.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str  # JSON text


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"


class Message(msgspec.Struct, frozen=True):
    """Fields that are not named here (audio, annotations …) are ignored."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Plain values for the template. Raises InvalidRequest naming the message."""
    if not messages:
        raise InvalidRequest("'messages' is empty; accepted: one message or more", param="messages")
    return [_template_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _template_message(message: Message, where: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise InvalidRequest(
            f"Invalid value for '{where}.role': {message.role[:100]!r}; accepted: {', '.join(ROLES)}",
            param=f"{where}.role",
        )
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise InvalidRequest(f"Missing required parameter: '{where}.content'", param=f"{where}.content")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(
            f"'{where}.tool_calls' is only accepted in messages of role assistant",
            param=f"{where}.tool_calls",
        )
    found: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, where),
    }
    for key in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, key)
        if value is not None:
            found[key] = value
    if message.tool_calls:
        found["tool_calls"] = [
            _template_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    return found


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    """Parts are joined by line breaks."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if part.type not in ("text", "refusal"):
            name = f"{where}.content[{i}].type"
            raise InvalidRequest(
                f"Invalid value for '{name}': {part.type[:100]!r}; accepted: text", param=name
            )
        if text is None:
            name = f"{where}.content[{i}].{part.type}"
            raise InvalidRequest(f"Missing required parameter: '{name}'", param=name)
        texts.append(text)
    return "\n".join(texts)


def _template_call(call: ToolCall, where: str) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves, so they get an object."""
    name = f"{where}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{name}' is not JSON: {error}", param=name) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"'{name}' must be the JSON text of an object", param=name)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
