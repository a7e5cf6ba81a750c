"""Chat templates of a Hugging Face folder, rendered by Jinja in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stoa.engine.model.config import read_json
from stoa.errors import InvalidModel, InvalidRequest

_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The model's templates by name; false if it has none."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """`config`: of tokenizer_config.json. Raises InvalidModel naming the file that is damaged."""
        self._templates = _compile_templates(folder, config)

    def __bool__(self) -> bool:
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any],
    ) -> str:
        """Raises InvalidRequest if there is no template or the template refuses."""
        template = self._template(with_tools=tools is not None)
        shown = [_with_reasoning(m) for m in messages]
        try:
            return template.render({"documents": None, **arguments, "messages": shown, "tools": tools})
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refused: {error.message}", param="messages") from None
        except Exception as error:
            what = f"the chat template failed on these messages: {type(error).__name__}: {error}"
            raise InvalidRequest(what, param="messages") from None

    def _template(self, *, with_tools: bool) -> jinja2.Template:
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            message = "this model has no chat template; use /v1/completions instead"
            raise InvalidRequest(message, param="messages")
        return self._templates["default"]


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks assistant text for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face chat templates expect it."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env


def _compile_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, jinja2.Template]:
    """By name; the model's only template is "default". Raises InvalidModel naming the file."""
    env = _environment()
    compiled = {}
    for name, (source, path) in _template_sources(folder, config).items():
        try:
            compiled[name] = env.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModel(f"{path}: chat template, line {error.lineno}: {error.message}") from None
    return compiled


def _template_sources(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[str, Path]]:
    """Name -> (source, file). Files of their own go before tokenizer_config.json."""
    jinja_file, json_file = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja_file.exists():
        files = {"default": jinja_file}
        files |= {p.stem: p for p in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        return {name: (_read_text(path), path) for name, path in files.items()}
    path, value = folder / "tokenizer_config.json", config.get("chat_template")
    if json_file.exists():
        path, value = json_file, read_json(json_file).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": (value, path)}
    try:
        named = value if isinstance(value, dict) else {t["name"]: t["template"] for t in value}
    except (TypeError, KeyError):
        named = None
    if named is None or not all(isinstance(source, str) for source in named.values()):
        raise InvalidModel(f"{path}: chat_template must be text, or a list of objects with name and template")
    return {name: (source, path) for name, source in named.items()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}") from None


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reasoning travels under several names; templates read `reasoning_content`, some `thinking`."""
    if not isinstance(message, Mapping):
        raise InvalidRequest("each message must be an object", param="messages")
    text = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    return message if text is None else {"thinking": text, **message, "reasoning_content": text}
