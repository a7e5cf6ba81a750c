"""Server-sent events out of bytes as they come (WHATWG HTML, section 9.2.6), with bounds."""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class BadStream(Exception):
    """What came is no event stream, or has a line or event beyond the bound."""


class SseEvent(NamedTuple):
    name: str  # "message" unless the stream says otherwise
    data: str


class EventParser:
    """`feed` it bytes cut anywhere; lines may end with LF, CR or CRLF. Comments and unknown fields are ignored."""

    def __init__(self, max_event_bytes: int = 1 << 20) -> None:
        """`max_event_bytes`: of one line, and of one event's data."""
        self._max = max_event_bytes
        self._rest = bytearray()  # a line that has not ended
        self._after_cr = False  # an LF now belongs to the line before
        self._first = True
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Events that are complete now. Takes time in proportion to the chunk. Raises BadStream."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        found: list[SseEvent] = []
        for piece in chunk.splitlines(keepends=True):  # of bytes: at LF, CR and CRLF only
            line = piece.rstrip(b"\r\n")
            if len(self._rest) + len(line) > self._max:
                raise BadStream(f"a line has more than {self._max} bytes")
            if len(line) == len(piece):  # the last one, without its end
                self._rest += line
                break
            if self._rest:
                line, self._rest = bytes(self._rest + line), bytearray()
            event = self._take(line)
            if event is not None:
                found.append(event)
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        return found

    def finish(self) -> list[SseEvent]:
        """At the end of the stream: an event whose blank line is missing, as some servers end."""
        found = []
        if self._rest:
            line, self._rest = bytes(self._rest), bytearray()
            found = [e for e in (self._take(line),) if e is not None]
        last = self._take(b"")
        return found if last is None else [*found, last]

    def _take(self, raw: bytes) -> SseEvent | None:
        """One line; the event that it ends, if any."""
        if self._first:
            self._first = False
            raw = raw.removeprefix(_BOM)
        if not raw:
            name, data = self._name or "message", self._data
            self._name, self._data, self._size = "", [], 0
            return SseEvent(name, "\n".join(data)) if data else None
        field, _, value = raw.partition(b":")
        try:
            text = value.removeprefix(b" ").decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadStream(f"a line is not UTF-8: {error.reason}") from None
        if field == b"data":
            self._size += len(value) + 1
            if self._size > self._max:
                raise BadStream(f"an event has more than {self._max} bytes")
            self._data.append(text)
        elif field == b"event":
            self._name = text
        return None
