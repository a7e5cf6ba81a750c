"""Messages between a gateway and an engine process: msgpack frames, 4-byte little-endian length first.

Gateway → engine: `Login` first where the engine listens on TCP; then `GenerationRequest`, `Cancel`, `Warm`, `Forget`,
`GetStats`, `Ping`, `Drain`.
Engine → gateway: `Hello` once, then `Events` after each step that has news, `Usages` when requests have ended,
`EngineStats` and `Pong` on request. One gateway of an engine keeps its books: it gets `KeepBooks`, then `Interval`
about once a second.
"""

from __future__ import annotations

import asyncio
import struct

import msgspec

from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval, RequestUsage

MAX_FRAME_BYTES = 256 << 20
MAX_LOGIN_BYTES = 4096
_LENGTH = struct.Struct("<I")


class Login(msgspec.Struct, frozen=True, tag="login"):
    token: str


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    request_id: str


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """Bring an adapter into host memory ahead of its first request."""

    adapter: AdapterRef


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Drop an adapter from memory once nothing uses it."""

    adapter_id: str


class GetStats(msgspec.Struct, frozen=True, tag="get_stats"):
    pass


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    pass


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what runs, admit nothing more, then exit."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The engine is up. `kernels` names the path it uses, `notice` what a person should know (or "")."""

    pid: int
    kernels: str
    notice: str
    max_model_len: int


class KeepBooks(msgspec.Struct, frozen=True, tag="keep_books"):
    """Intervals follow; the first begins at `started_ns` (Unix)."""

    started_ns: int
    pool_bytes: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The process is alive; its engine has looked for work so many times."""

    turns: int


class Events(msgspec.Struct, frozen=True, tag="events"):
    events: list[TokenEvent]


class Usages(msgspec.Struct, frozen=True, tag="usages"):
    usages: list[RequestUsage]


ToEngine = Login | GenerationRequest | Cancel | Warm | Forget | GetStats | Ping | Drain
FromEngine = Hello | KeepBooks | Pong | Events | Usages | Interval | EngineStats

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def _read_frame(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > most_bytes:
        raise ConnectionError(f"frame of {length} bytes exceeds {most_bytes}")
    return await reader.readexactly(length)


async def read_to_engine(reader: asyncio.StreamReader, most_bytes: int = MAX_FRAME_BYTES) -> ToEngine:
    """Raises asyncio.IncompleteReadError at end of stream, ConnectionError for what is no message."""
    try:
        return _to_engine.decode(await _read_frame(reader, most_bytes))
    except msgspec.MsgspecError as error:
        raise ConnectionError(f"not a message: {error}") from None


async def read_from_engine(reader: asyncio.StreamReader) -> FromEngine:
    """Raises asyncio.IncompleteReadError at end of stream, ConnectionError for what is no message."""
    try:
        return _from_engine.decode(await _read_frame(reader, MAX_FRAME_BYTES))
    except msgspec.MsgspecError as error:
        raise ConnectionError(f"not a message: {error}") from None
