"""Messages between a gateway and an engine process: msgpack frames, 4-byte little-endian length first.

Gateway → engine: `GenerationRequest`, `Cancel`, `Warm`, `Forget`, `GetStats`, `Drain`.
Engine → gateway: `Hello` once, then `Events` after each step that has news, `Usages` when requests have ended,
`Interval` about once a second, `EngineStats` on request.
"""

from __future__ import annotations

import asyncio
import struct

import msgspec

from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval, RequestUsage

MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")


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


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what runs, admit nothing more, then exit."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The engine is up. `kernels` names the path it uses, `notice` what a person should know (or "")."""

    pid: int
    kernels: str
    notice: str
    max_model_len: int
    started_ns: int = 0  # Unix time of its first interval
    pool_bytes: int = 0


class Events(msgspec.Struct, frozen=True, tag="events"):
    events: list[TokenEvent]


class Usages(msgspec.Struct, frozen=True, tag="usages"):
    usages: list[RequestUsage]


ToEngine = GenerationRequest | Cancel | Warm | Forget | GetStats | Drain
FromEngine = Hello | Events | Usages | Interval | EngineStats

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ConnectionError(f"frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
    return await reader.readexactly(length)


async def read_to_engine(reader: asyncio.StreamReader) -> ToEngine:
    """Raises asyncio.IncompleteReadError at end of stream."""
    return _to_engine.decode(await _read_frame(reader))


async def read_from_engine(reader: asyncio.StreamReader) -> FromEngine:
    """Raises asyncio.IncompleteReadError at end of stream."""
    return _from_engine.decode(await _read_frame(reader))
