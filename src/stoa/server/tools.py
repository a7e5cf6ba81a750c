"""Tools of a chat request: may this model have them, and what grammar makes it call them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from stoa.engine.request import Grammar
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import InvalidRequest
from stoa.server.tool_calls import HERMES, LLAMA, MISTRAL, ToolFormat

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PROBE = "stoa_probe"
_LLAMA = re.compile(r'\{"name": [\w" ]+, "parameters": ')
_FIXED_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SOME_SPACES = {"whitespace_pattern": r"[ \t\r\n]{0,40}"}


class FunctionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    type: str
    function: FunctionSpec


class FunctionName(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    type: str
    function: FunctionName


def check_tools(tools: Sequence[ToolSpec]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' has {len(tools)} items; accepted: up to {MAX_TOOLS}", param="tools")
    for i, tool in enumerate(tools):
        if tool.type != "function":
            where = f"tools[{i}].type"
            raise InvalidRequest(
                f"Invalid value for '{where}': {tool.type!r}; accepted: function", param=where
            )
        if not _NAME.fullmatch(tool.function.name):
            where = f"tools[{i}].function.name"
            raise InvalidRequest(
                f"Invalid value for '{where}': {tool.function.name[:100]!r}; accepted: 1 to 64 of "
                "A-Z a-z 0-9 _ . -",
                param=where,
            )


def chosen_tools(
    choice: str | NamedTool | None, tools: Sequence[ToolSpec] | None
) -> tuple[list[ToolSpec], bool]:
    """(tools that the model may see or must use, must it?). [] if it shall not call any."""
    found = list(tools or ())
    if not found and choice not in (None, "none", "auto"):
        raise InvalidRequest("'tool_choice' is only accepted with 'tools'", param="tool_choice")
    if choice in (None, "auto"):
        return found, False
    if choice == "none":
        return [], False
    if choice == "required":
        return found, True
    if isinstance(choice, NamedTool) and choice.type == "function":
        named = [t for t in found if t.function.name == choice.function.name]
        if not named:
            name = choice.function.name[:100]
            raise InvalidRequest(
                f"Invalid value for 'tool_choice': there is no function {name!r} in 'tools'",
                param="tool_choice",
            )
        return named, True
    shown = choice if isinstance(choice, str) else choice and choice.type
    raise InvalidRequest(
        f"Invalid value for 'tool_choice': {shown!r}; accepted: none, auto, required, or an object of type "
        "function",
        param="tool_choice",
    )


def detect_format(tokenizer: Tokenizer) -> ToolFormat | None:
    """How the model behind this chat template calls tools, read off what the template makes of a call.
    None: the template knows no tools, or writes calls in another way."""
    rendered = _render_probe(tokenizer)
    if _PROBE not in rendered:
        return None
    if "[TOOL_CALLS]" in rendered or "[AVAILABLE_TOOLS]" in rendered:
        return None if "[ARGS]" in rendered else MISTRAL
    if "<tool_call>" in rendered:
        return None if "<function=" in rendered else HERMES
    return LLAMA if _LLAMA.search(rendered) else None


def _render_probe(tokenizer: Tokenizer) -> str:
    """A conversation with a call; without, if the template refuses that; else ""."""
    function = {"name": _PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "probe0000", "type": "function", "function": {"name": _PROBE, "arguments": {"a": 1}}}
    ask: dict[str, Any] = {"role": "user", "content": "q"}
    turns = [
        ask,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "probe0000", "name": _PROBE},
    ]
    for messages in (turns, [ask]):
        try:
            return tokenizer.apply_chat_template(messages, [{"type": "function", "function": function}])
        except InvalidRequest:
            continue
    return ""


def needs_special_tokens(form: ToolFormat, tokenizer: Tokenizer) -> bool:
    """Are the marks of a call special tokens, which would be left out of the text?"""
    marks = [m for m in (form.open, form.close) if m]
    return any(_token(m, tokenizer) in tokenizer.special_ids for m in marks)


def call_grammar(
    form: ToolFormat,
    tools: Sequence[ToolSpec],
    tokenizer: Tokenizer,
    *,
    parallel: bool,
    answer: Grammar | None = None,
) -> Grammar:
    """Output that is calls of `tools` and nothing else; or, with `answer` (JSON), either of both."""
    rules = [f"obj: {' | '.join(f'obj_{i}' for i in range(len(tools)))}"]
    rules += [f"obj_{i}: %json {_call_schema(form, t.function)}" for i, t in enumerate(tools)]
    opened, closed = _terminal(form.open, tokenizer), _terminal(form.close, tokenizer)
    if form is HERMES:
        rules += [
            f'call: {opened} "\\n" obj "\\n" {closed}',
            'calls: call ("\\n" call)*' if parallel else "calls: call",
        ]
    elif form is MISTRAL:
        more = '(", " obj)*' if parallel else ""
        rules += [f'calls: {opened} "[" obj {more} "]"']
    else:  # Llama's template takes one call at a time
        rules += ["calls: obj"]
    if answer is None:
        rules.insert(0, "start: calls")
    else:
        rules.insert(0, "start: calls | answer")
        rules.append(f"answer: %json {_answer_schema(answer)}")
    return Grammar(kind="lark", source="\n".join(rules) + "\n")


def _call_schema(form: ToolFormat, function: FunctionSpec) -> str:
    """Definitions move to the top, where "#/$defs/…" looks for them."""
    arguments = dict(function.parameters or {"type": "object"})
    arguments.setdefault("type", "object")
    schema: dict[str, Any] = {
        "x-guidance": _FIXED_SPACES,
        "type": "object",
        "properties": {"name": {"const": function.name}, form.arguments_key: arguments},
        "required": ["name", form.arguments_key],
        "additionalProperties": False,
    }
    for key in ("$defs", "definitions"):
        if key in arguments:
            schema[key] = arguments.pop(key)
    return json.dumps(schema)


def _answer_schema(answer: Grammar) -> str:
    schema = json.loads(answer.source) if answer.kind == "json_schema" else {"type": "object"}
    return json.dumps({"x-guidance": _SOME_SPACES, **schema} if isinstance(schema, dict) else schema)


def _token(text: str, tokenizer: Tokenizer) -> int | None:
    """The id of `text`, if it is one token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None


def _terminal(text: str, tokenizer: Tokenizer) -> str:
    """`text` in a grammar: by id where it is one token, because added tokens have no bytes there."""
    if not text:
        return ""
    token = _token(text, tokenizer)
    return json.dumps(text) if token is None or len(text) == 1 else f"<[{token}]>"
