"""multipart/form-data as it comes in: a file's bytes are handed on before its end is here, and never lie in memory whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import python_multipart
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from stoa.errors import InvalidRequest, RequestTimeout, RequestTooLarge

_PATIENCE_S = 60  # for the next bytes of an upload
_MOST_PARTS = 32
_HEADER_BYTES = 8192


@dataclass(frozen=True)
class Begin:
    """Of a part. `filename` None: a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class Data:
    data: bytes


@dataclass(frozen=True)
class End:
    pass


Event = Begin | Data | End


async def events(request: Request) -> AsyncGenerator[Event, None]:
    """What the body consists of, in order. Raises InvalidRequest, RequestTimeout."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not (boundary := options.get(b"boundary")):
        raise InvalidRequest("the request must be multipart/form-data")
    parts = _Parts(boundary)
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeout(f"Nothing of the upload arrived within {_PATIENCE_S} s") from None
        if chunk is None:
            break
        for event in parts.feed(chunk):
            yield event
    if not parts.complete:
        raise InvalidRequest("the multipart body ends before its last boundary")


async def rest_of_part(events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """Its data, to its end."""
    async for event in events:
        if isinstance(event, Data):
            yield event.data
        elif isinstance(event, End):
            return


async def text_of_part(events: AsyncIterator[Event], name: str, most_bytes: int = 4096) -> str:
    """A plain field. Raises RequestTooLarge, InvalidRequest."""
    value = b""
    async for data in rest_of_part(events):
        value += data
        if len(value) > most_bytes:
            raise RequestTooLarge(f"'{name}' is longer than {most_bytes} bytes", param=name)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{name}' is not valid UTF-8", param=name) from None


class _Parts:
    """Turns the parser's callbacks into events."""

    def __init__(self, boundary: bytes) -> None:
        self.complete = False
        self._found: list[Event] = []
        self._count = 0
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": lambda: self._found.append(End()),
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises InvalidRequest."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise InvalidRequest(f"the multipart body is malformed: {error}") from None
        found, self._found = self._found, []
        return found

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MOST_PARTS:
            raise InvalidRequest(f"the multipart body has more than {_MOST_PARTS} parts")
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field = self._bounded(self._field + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._bounded(self._value + data[start:end])

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name, filename = options.get(b"name"), options.get(b"filename")
        if name is None:
            raise InvalidRequest("a part of the multipart body has no name")
        self._found.append(Begin(_text(name), None if filename is None else _text(filename)))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(Data(data[start:end]))

    def _end(self) -> None:
        self.complete = True

    def _bounded(self, text: bytes) -> bytes:
        if len(text) > _HEADER_BYTES:
            raise InvalidRequest("a header of the multipart body is too long")
        return text


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
