"""Tool calls in a model's text, found as the text comes.

hermes   <tool_call>{"name": "f", "arguments": {…}}</tool_call>, any number, after any text (Qwen, Hermes)
llama    {"name": "f", "parameters": {…}}, from the very start (Llama 3.1)
mistral  [TOOL_CALLS] [{"name": "f", "arguments": {…}}, …], after any text
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

_ARGUMENT_KEYS = ("arguments", "parameters")
_SPACE = " \t\r\n"
_PYTHON_TAG = "<|python_tag|>"
_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls. Without an opening mark any JSON answer looks like a call, so there the name
    must be that of a tool."""

    name: str
    open: str
    close: str
    between: str  # what stands between two calls
    arguments_key: str

    def new_id(self) -> str:
        """Mistral's templates insist on nine letters and digits."""
        if self is MISTRAL:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", "", "arguments")
LLAMA = ToolFormat("llama", "", "", ";", "parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "]", ",", "arguments")


@dataclass
class CallDelta:
    """News of one call: `id` and `name` come first and once, then pieces of the arguments' JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class _State(Enum):
    TEXT = auto()  # before a call
    OPENED = auto()  # after the opening mark
    OBJECT = auto()  # in a call
    BETWEEN = auto()  # after a call
    PLAIN = auto()  # no call can come any more


class CallParser:
    """Splits one choice's text into content and calls. What only looked like a call comes out as content."""

    def __init__(self, form: ToolFormat, names: Collection[str], *, parallel: bool = True) -> None:
        self.num_calls = 0
        self._form, self._names, self._parallel = form, names, parallel
        self._state = _State.TEXT
        self._buffer = ""
        self._held = ""  # since the opening mark: content after all, should this be no call
        self._object = _CallObject()
        self._started = False  # the call in hand has been announced
        self._content: list[str] = []
        self._calls: list[CallDelta] = []

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """(content, news of calls) that `text` adds."""
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._take()

    def finish(self) -> tuple[str, list[CallDelta]]:
        """What was held back, once the text has ended."""
        rest = self._buffer
        if self._state is _State.TEXT and self.num_calls:
            rest = rest.rstrip()
        elif self._state in (_State.OPENED, _State.OBJECT):
            rest = "" if self._started else self._held + self._object.text + rest
        elif self._state is _State.BETWEEN:
            rest = ""
        self._content.append(rest)
        self._buffer = ""
        return self._take()

    def _take(self) -> tuple[str, list[CallDelta]]:
        """At most one delta for a call."""
        content, calls = "".join(self._content), self._calls
        self._content, self._calls = [], []
        merged: dict[int, CallDelta] = {}
        for call in calls:
            if call.index == 0 or self._parallel:
                first = merged.setdefault(call.index, call)
                if first is not call:
                    first.arguments += call.arguments
        return content, list(merged.values())

    def _step(self) -> bool:
        """Takes something off the buffer; false if more text is needed for that."""
        if self._state is _State.TEXT:
            return self._find_mark() if self._form.open else self._begin_unmarked()
        if self._state is _State.OPENED:
            return self._expect_object()
        if self._state is _State.OBJECT:
            return self._read_object()
        if self._state is _State.BETWEEN:
            return self._after_object()
        self._content.append(self._buffer)
        self._buffer = ""
        return False

    def _find_mark(self) -> bool:
        mark = self._form.open
        before, found, after = self._buffer.partition(mark)
        if found:
            self._content.append(before.rstrip())
            self._buffer, self._held, self._state = (
                after,
                before[len(before.rstrip()) :] + mark,
                _State.OPENED,
            )
            return True
        keep = len(self._buffer) - _partial(self._buffer, mark)
        keep = len(self._buffer[:keep].rstrip())
        self._content.append(self._buffer[:keep])
        self._buffer = self._buffer[keep:]
        return False

    def _begin_unmarked(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(_PYTHON_TAG):
            rest = rest[len(_PYTHON_TAG) :].lstrip()
        if not rest or _PYTHON_TAG.startswith(rest):
            return False
        if rest[0] != "{":
            self._state = _State.PLAIN
            return True
        self._held = self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        self._open_object()
        return True

    def _expect_object(self) -> bool:
        skip = _SPACE + "[" if self._form is MISTRAL else _SPACE
        rest = self._buffer.lstrip(skip)
        self._held += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        if rest[:1] == "{":
            self._open_object()
        elif rest:
            self._give_up()
        return bool(rest)

    def _open_object(self) -> None:
        self._object, self._started, self._state = _CallObject(), False, _State.OBJECT

    def _read_object(self) -> bool:
        found = self._object
        self._buffer = self._buffer[found.push(self._buffer) :]
        known = bool(self._form.open) or found.name in self._names
        if found.failed and not self._started:
            self._give_up()
            return True
        ready = found.has_arguments or (found.done and bool(self._form.open))
        if found.name is not None and known and ready and not self._started:
            self._started = True
            self.num_calls += 1
            self._calls.append(CallDelta(self.num_calls - 1, self._form.new_id(), found.name))
        if self._started:
            arguments = found.take_arguments()
            if found.done and not found.has_arguments:
                arguments = "{}"
            if arguments:
                self._calls.append(CallDelta(self.num_calls - 1, arguments=arguments))
        if found.done or found.failed:
            if self._started:
                self._state = _State.BETWEEN
            else:
                self._give_up()
        return bool(self._buffer)

    def _give_up(self) -> None:
        """No call after all."""
        self._content.append(self._held + self._object.text)
        self._object, self._held = _CallObject(), ""
        self._state = _State.TEXT if self._form.open else _State.PLAIN

    def _after_object(self) -> bool:
        rest = self._buffer.lstrip(_SPACE + self._form.between)
        self._buffer, self._held = rest, ""
        if not rest:
            return False
        if rest[0] == "{":
            self._open_object()
        elif not self._form.close:
            self._state = _State.PLAIN
        elif rest.startswith(self._form.close):
            self._buffer, self._state = rest[len(self._form.close) :], _State.TEXT
        elif self._form.close.startswith(rest):
            return False
        else:
            self._state = _State.TEXT
        return True


def _partial(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


class _Expect(Enum):
    OPEN = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    AFTER = auto()


class _CallObject:
    """Follows one JSON object as it is written and hands out its arguments before it is complete."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.has_arguments = False  # their value has begun
        self.done = self.failed = False
        self._chars: list[str] = []
        self._out: list[str] = []
        self._expect = _Expect.OPEN
        self._depth = 0
        self._in_string = self._escaped = False
        self._key = ""
        self._value: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._chars)

    def push(self, text: str) -> int:
        """Takes characters until the object ends or turns out to be none; returns how many."""
        for i, char in enumerate(text):
            self._chars.append(char)
            self._take(char)
            if self.done or self.failed:
                return i + 1
        return len(text)

    def take_arguments(self) -> str:
        out, self._out = "".join(self._out), []
        return out

    def _take(self, char: str) -> None:
        if self._in_string:
            self._take_in_string(char)
        elif self._expect is _Expect.IN_VALUE:
            self._take_in_value(char)
        elif char in _SPACE:
            return
        elif self._expect is _Expect.VALUE:
            self._begin_value(char)
        elif self._expect is _Expect.OPEN and char == "{":
            self._depth, self._expect = 1, _Expect.KEY
        elif self._expect is _Expect.KEY and char == '"':
            self._in_string, self._value = True, [char]
        elif self._expect is _Expect.COLON and char == ":":
            self._expect = _Expect.VALUE
        elif self._expect is _Expect.AFTER and char == ",":
            self._expect = _Expect.KEY
        elif self._expect in (_Expect.AFTER, _Expect.KEY) and char == "}":
            self.done = True
        else:
            self.failed = True

    def _take_in_string(self, char: str) -> None:
        self._append(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._expect is _Expect.KEY:
                self._key, self._expect = self._loads(), _Expect.COLON
            elif self._depth == 1:
                self._end_value()

    def _begin_value(self, char: str) -> None:
        self._value, self._expect = [], _Expect.IN_VALUE
        self.has_arguments |= self._key in _ARGUMENT_KEYS
        self._take_in_value(char)

    def _take_in_value(self, char: str) -> None:
        if self._depth == 1 and char in ",}":  # after a number, true, false or null
            self._end_value()
            self._take(char)
            return
        self._append(char)
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 1:
                self._end_value()

    def _append(self, char: str) -> None:
        """Arguments that are an object are handed out at once; others are looked at when complete."""
        self._value.append(char)
        if self._expect is _Expect.IN_VALUE and self._key in _ARGUMENT_KEYS and self._value[0] == "{":
            self._out.append(char)

    def _end_value(self) -> None:
        self._expect = _Expect.AFTER
        if self._key == "name":
            name = self._loads()
            self.name = name or None
            self.failed = not name
        elif self._key in _ARGUMENT_KEYS and self._value[:1] != ["{"]:
            text = "".join(self._value).strip()
            if text.startswith('"'):  # JSON within JSON
                text = self._loads()
            self._out.append("{}" if text in ("null", "") else text)

    def _loads(self) -> str:
        """The string just read; "" if it is none."""
        try:
            value = json.loads("".join(self._value))
        except ValueError:
            return ""
        return value if isinstance(value, str) else ""
