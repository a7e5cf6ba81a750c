"""The lines of an input file: cut, read, and looked at before anything runs."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field

import msgspec

from stoa.batches.batch import LineError

MAX_LINES = 50_000
MAX_LINE_BYTES = 9 << 20  # a body within the server's limit, and what is around it
MAX_ERRORS = 100  # told of one file
MAX_MODEL_CHARS = 512
_BOM = b"\xef\xbb\xbf"
_NAMED = re.compile(r"`\$\.(\w+)|field `(\w+)`")


@dataclass(frozen=True)
class RawLine:
    """`number` counts from 1, blank lines too."""

    number: int
    text: bytes


@dataclass(frozen=True)
class Line:
    """A request. `tries`: how often it was sent already."""

    number: int
    custom_id: str
    body: bytes
    tries: int = 0


class InvalidLine(ValueError):
    """What is wrong with a line, in the words of the API."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


class _Request(msgspec.Struct, frozen=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None


_read_request = msgspec.json.Decoder(_Request).decode
_read_body = msgspec.json.Decoder(_Body).decode


async def cut(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[RawLine], None]:
    """The lines of a file, some at a time, without blank ones. Raises InvalidLine for one that has no end."""
    number, rest = 0, b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            message = f"This line is longer than {MAX_LINE_BYTES} bytes."
            raise InvalidLine(LineError("invalid_request", message, number + len(whole) + 1))
        yield _numbered(whole, number)
        number += len(whole)
    yield _numbered([rest], number)


def _numbered(texts: list[bytes], before: int) -> list[RawLine]:
    if before == 0 and texts:
        texts[0] = texts[0].removeprefix(_BOM)
    return [RawLine(before + i, text) for i, text in enumerate(texts, 1) if text.strip()]


def read_line(raw: RawLine, endpoint: str) -> tuple[Line, str]:
    """The request in a line, and the model it asks. Raises InvalidLine."""
    try:
        request = _read_request(raw.text)
        body = _read_body(request.body)
    except msgspec.ValidationError as error:
        found = _NAMED.search(str(error))
        param = None if found is None else found[1] or found[2]
        raise _invalid(raw, "invalid_request", f"{error}.", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _invalid(raw, "invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not 1 <= len(request.custom_id) <= 512:
        raise _invalid(raw, "invalid_request", "custom_id must be 1 to 512 characters.", "custom_id")
    if request.method != "POST":
        raise _invalid(raw, "invalid_method", "The method must be POST.", "method")
    if request.url != endpoint:
        message = f"The URL of this request does not match the batch's endpoint, {endpoint}."
        raise _invalid(raw, "url_mismatch", message, "url")
    if not 1 <= len(body.model) <= MAX_MODEL_CHARS or not body.model.isprintable():
        message = f"model must be 1 to {MAX_MODEL_CHARS} printable characters."
        raise _invalid(raw, "invalid_request", message, "body.model")
    if body.stream:
        raise _invalid(raw, "invalid_request", "A batch does not stream; leave 'stream' out.", "body.stream")
    return Line(raw.number, request.custom_id, bytes(request.body)), body.model


def _invalid(raw: RawLine, code: str, message: str, param: str | None = None) -> InvalidLine:
    return InvalidLine(LineError(code, message, raw.number, param))


@dataclass
class Inspection:
    """Looks at a whole file, a few lines at a time."""

    endpoint: str
    total: int = 0
    errors: list[LineError] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)

    @property
    def model(self) -> str | None:
        """The one that all lines ask; None if they differ."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    @property
    def hopeless(self) -> bool:
        """Nothing more is worth saying."""
        return len(self.errors) >= MAX_ERRORS or self.total > MAX_LINES

    def add(self, lines: Iterable[RawLine]) -> None:
        for raw in lines:
            self.total += 1
            try:
                self._add(raw)
            except InvalidLine as invalid:
                self.errors.append(invalid.error)
            if self.hopeless:
                break

    def end(self) -> None:
        """After the last line."""
        if not self.total:
            self.errors.append(LineError("empty_file", "The input file is empty."))
        elif self.total > MAX_LINES:
            message = f"The input file has more than {MAX_LINES} requests."
            self.errors.insert(0, LineError("too_many_tasks", message))

    def _add(self, raw: RawLine) -> None:
        line, model = read_line(raw, self.endpoint)
        if line.custom_id in self._seen:
            message = "The custom_id of this request is another request's already; it must be unique."
            raise _invalid(raw, "duplicate_custom_id", message, "custom_id")
        self._seen.add(line.custom_id)
        self.models.add(model)
