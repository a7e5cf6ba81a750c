"""What rank 0 and its followers say to each other, over a socket pair: msgpack with the kind's name in front."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stoa.engine.config import EngineConfig
from stoa.engine.kernels.interface import AttentionRows
from stoa.engine.request import AdapterRef


class Start(msgspec.Struct, tag=True, array_like=True):
    """The first message. `store`: port where ranks find each other."""

    config: EngineConfig
    rank: int
    store: int


class OpenPool(msgspec.Struct, tag=True, array_like=True):
    pages: int


class Segments(msgspec.Struct, array_like=True):
    """Rows starts[g]:starts[g + 1] use the adapter at page first_pages[g]; -1: none."""

    starts: list[int]
    first_pages: list[int]


class Step(msgspec.Struct, tag=True, array_like=True):
    """What a forward pass needs. Arrays are those of `AttentionRows`, as bytes."""

    tokens: list[int]
    query_start: bytes
    context_len: bytes
    block_table: bytes
    positions: bytes
    slots: bytes
    lora: Segments
    samples: list[int]  # rows whose logits are wanted
    sample_lora: Segments


class Prefetch(msgspec.Struct, tag=True, array_like=True):
    """The adapter will be wanted."""

    ref: AdapterRef


class LayOut(msgspec.Struct, tag=True, array_like=True):
    """At these pages. Answered by `LaidOut`."""

    ref: AdapterRef
    first_page: int


class Forget(msgspec.Struct, tag=True, array_like=True):
    adapter_id: str


class Loaded(msgspec.Struct, tag=True, array_like=True):
    """Weights are in memory."""


class Rehearsed(msgspec.Struct, tag=True, array_like=True):
    """`available`: bytes that the pool may take."""

    available: int


class Opened(msgspec.Struct, tag=True, array_like=True):
    """The pool is there; steps may come."""


class Failed(msgspec.Struct, tag=True, array_like=True):
    """The follower ends with this error. `kind`: its class in `stoa.errors`."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None


class LaidOut(msgspec.Struct, tag=True, array_like=True):
    """Or not, and why; nothing is written to the pages any more."""

    first_page: int
    error: Failed | None = None


ToFollower = Start | OpenPool | Step | Prefetch | LayOut | Forget
FromFollower = Loaded | Rehearsed | Opened | Failed | LaidOut
_encode = msgspec.msgpack.Encoder().encode
_to_follower: msgspec.msgpack.Decoder[ToFollower] = msgspec.msgpack.Decoder(ToFollower)
_from_follower: msgspec.msgpack.Decoder[FromFollower] = msgspec.msgpack.Decoder(FromFollower)


def encode(message: ToFollower | FromFollower) -> bytes:
    return _encode(message)


def read_to_follower(connection: Connection) -> ToFollower:
    """Waits for it. Raises EOFError or OSError when the other end is closed."""
    return _to_follower.decode(connection.recv_bytes())


def read_from_follower(connection: Connection) -> FromFollower:
    return _from_follower.decode(connection.recv_bytes())


class Sender:
    """Messages of several threads over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, data: bytes) -> None:
        """Raises OSError when the other end is closed."""
        with self._lock:
            self._connection.send_bytes(data)


def rows_of(step: Step) -> AttentionRows:
    def array(data: bytes, kind: type[np.int32] | type[np.int64]) -> NDArray[Any]:
        return np.frombuffer(bytearray(data), dtype=kind)

    context_len = array(step.context_len, np.int32)
    return AttentionRows(
        query_start=array(step.query_start, np.int32),
        context_len=context_len,
        block_table=array(step.block_table, np.int32).reshape(len(context_len), -1),
        positions=array(step.positions, np.int32),
        slots=array(step.slots, np.int64),
    )
