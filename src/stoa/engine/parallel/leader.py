"""Rank 0's side: starts the other ranks, tells them what to do, and knows when one is gone."""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from stoa import errors
from stoa.engine.batch import Batch, Segments
from stoa.engine.config import EngineConfig
from stoa.engine.parallel import messages
from stoa.engine.parallel.group import Group, open_store
from stoa.engine.parallel.messages import (
    Failed,
    Forget,
    FromFollower,
    LaidOut,
    LayOut,
    Loaded,
    Opened,
    OpenPool,
    Prefetch,
    Rehearsed,
    Sender,
    Start,
    Step,
    ToFollower,
    encode,
    read_from_follower,
)
from stoa.engine.request import AdapterRef
from stoa.errors import ConfigError, EngineUnavailable, StoaError

_MODULE = "stoa.engine.parallel.follower"
_END_S = 5.0  # for a follower to end by itself
_NOTICE_S = 2.0  # from an operation that fails until it is known whose end made it fail
M = TypeVar("M", bound=FromFollower)


@dataclass
class _Follower:
    rank: int
    process: subprocess.Popen[bytes]
    line: socket.socket
    connection: Connection
    sender: Sender
    ear: threading.Thread = field(init=False)
    inbox: queue.SimpleQueue[FromFollower | None] = field(
        default_factory=queue.SimpleQueue
    )  # None: it is gone


@dataclass
class _LayingOut:
    waiting: set[int]  # ranks
    done: Future[None]
    failure: StoaError | None = None


class Leader:
    """Methods are for the engine's thread, but `lay_out` and `prefetch`, which are for any. A thread for each follower hears
    what it says; `wakeup` is set when one is gone."""

    def __init__(self, config: EngineConfig, wakeup: threading.Event) -> None:
        """Starts processes, which load their shards. Raises ConfigError before that if there are not enough GPUs."""
        check_gpus(config)
        self.config = config
        self.wakeup = wakeup
        self.size = config.tensor_parallel
        self.lost: StoaError | None = None  # why nothing works any more
        self._known = threading.Event()  # `lost` is set
        self._started = False
        self._closing = False
        self._lock = threading.Lock()  # of what follows
        self._laying_out: dict[int, _LayingOut] = {}  # by first page
        self._group: Group | None = None
        self._store = open_store(self.size)
        self._followers: list[_Follower] = []
        try:
            for rank in range(1, self.size):
                self._followers.append(self._start(rank))
        except BaseException:
            self.close()
            raise

    # -- set-up: each of these waits for all followers, and raises what one of them says

    def join(self, device: torch.device) -> Group:
        """When all ranks have loaded their weights."""
        self._expect(Loaded)
        with self.together():
            self._group = Group(0, self.size, self._store, device)
        return self._group

    def least(self, available: int) -> int:
        """Bytes that every rank's pool may take."""
        return min([available, *(said.available for said in self._expect(Rehearsed))])

    def open_pool(self, pages: int) -> None:
        self._send(OpenPool(pages))
        self._expect(Opened)
        self._started = True

    # -- steps

    def check(self) -> None:
        """Raises EngineUnavailable if a rank is gone."""
        if self.lost is not None:
            raise self.lost

    def send_step(self, batch: Batch, first_page: Callable[[str], int]) -> None:
        """Has the others make this step. What rank 0 does of it goes into `together`."""

        def pages_of(segments: Segments) -> messages.Segments:
            return messages.Segments(
                segments.starts, [-1 if a is None else first_page(a) for a in segments.adapters]
            )

        rows = batch.rows
        self._send(
            Step(
                tokens=batch.tokens,
                query_start=rows.query_start.tobytes(),
                context_len=rows.context_len.tobytes(),
                block_table=rows.block_table.tobytes(),
                positions=rows.positions.tobytes(),
                slots=rows.slots.tobytes(),
                lora=pages_of(batch.segments),
                samples=batch.samples,
                sample_lora=pages_of(batch.sample_segments),
            )
        )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around operations of all ranks. Where they fail, there is no way back: raises EngineUnavailable, or during set-up
        the error that another rank told."""
        self.check()
        try:
            yield
        except (RuntimeError, OSError) as error:  # memory that is missing in the middle of a step, too
            self._known.wait(_NOTICE_S)
            if self.lost is None:
                self._lose(EngineUnavailable(f"a step of {self.size} ranks failed: {error}"))
            assert self.lost is not None
            raise self.lost from error
        self.check()  # an aborted sum looks like any other

    # -- adapters

    def prefetch(self, ref: AdapterRef) -> None:
        with contextlib.suppress(StoaError):  # the next step says so
            self._send(Prefetch(ref))

    def lay_out(self, ref: AdapterRef, first_page: int) -> Future[None]:
        """Has the others lay the adapter out from that page on. Done when all of them have, or cannot any more; then it
        raises the first one's StoaError."""
        laying_out = _LayingOut({f.rank for f in self._followers}, Future())
        with self._lock:
            if self._closing:
                laying_out.done.set_exception(EngineUnavailable("the engine was closed"))
                return laying_out.done
            self._laying_out[first_page] = laying_out
        with contextlib.suppress(StoaError):  # the next step says so, and `close` ends this
            self._send(LayOut(ref, first_page))
        return laying_out.done

    def forget(self, adapter_id: str) -> None:
        with contextlib.suppress(StoaError):
            self._send(Forget(adapter_id))

    # -- ends

    def close(self) -> None:
        """Ends all followers, whatever they do."""
        with self._lock:
            self._closing = True
            left, self._laying_out = self._laying_out, {}
        for laying_out in left.values():
            laying_out.done.set_exception(EngineUnavailable("the engine was closed"))
        for follower in self._followers:
            with contextlib.suppress(OSError):
                follower.line.shutdown(socket.SHUT_RDWR)  # which they take for the end
        for follower in self._followers:
            try:
                follower.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                follower.process.kill()
                follower.process.wait()
            follower.ear.join()
            follower.line.close()
            follower.connection.close()

    def _start(self, rank: int) -> _Follower:
        own, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, "--line", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        connection = Connection(own.dup().detach())
        follower = _Follower(rank, process, own, connection, Sender(connection))
        follower.ear = threading.Thread(
            target=self._listen, args=(follower,), name=f"rank-{rank}", daemon=True
        )
        follower.ear.start()
        with contextlib.suppress(OSError):  # if it has ended already, `join` says so
            follower.sender.send(encode(Start(self.config, rank, self._store.port)))
        return follower

    def _send(self, message: ToFollower) -> None:
        self.check()
        data = encode(message)
        for follower in self._followers:
            try:
                follower.sender.send(data)
            except OSError:
                self._known.wait(_NOTICE_S)
                self._lose(_ended(follower))
                self.check()

    def _expect(self, kind: type[M]) -> list[M]:
        """The next message of each follower, for which nothing else is on its way."""
        said: list[M] = []
        for follower in self._followers:
            message = follower.inbox.get()
            if not isinstance(message, kind):
                self._known.wait(_NOTICE_S)
                raise self.lost or _ended(follower)
            said.append(message)
        return said

    # -- the followers' threads

    def _listen(self, follower: _Follower) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = read_from_follower(follower.connection)
                if isinstance(message, LaidOut):
                    self._laid_out(follower.rank, message)
                elif isinstance(message, Failed):
                    error = error_of(message)
                    gone = EngineUnavailable(
                        f"rank {follower.rank} of the engine cannot go on: {error.message}"
                    )
                    self._lose(gone if self._started else error)
                else:
                    follower.inbox.put(message)
        if not self._closing:
            self._lose(_ended(follower))
        follower.inbox.put(None)

    def _laid_out(self, rank: int, message: LaidOut) -> None:
        with self._lock:
            laying_out = self._laying_out.get(message.first_page)
            if laying_out is None:  # closed meanwhile
                return
            laying_out.waiting.discard(rank)
            if message.error is not None:
                laying_out.failure = error_of(message.error)
            if laying_out.waiting:
                return
            del self._laying_out[message.first_page]
        if laying_out.failure is not None:
            laying_out.done.set_exception(laying_out.failure)
        else:
            laying_out.done.set_result(None)

    def _lose(self, why: StoaError) -> None:
        """The first reason counts."""
        with self._lock:
            if self.lost is not None or self._closing:
                return
            self.lost = why
        self._known.set()
        if self._group is not None:
            self._group.abort()
        self.wakeup.set()


def check_gpus(config: EngineConfig) -> None:
    """Raises ConfigError if there are fewer than ranks."""
    if config.device != "cuda":
        return
    there, size = torch.cuda.device_count(), config.tensor_parallel
    if there < size:
        accepted = {0: "--device cpu; see stoa doctor", 1: "1"}.get(there, f"1 to {there}")
        raise ConfigError(
            f"tensor_parallel is {size}, this machine shows {there or 'no'} GPU{'s' * (there > 1)}; accepted: "
            f"{accepted}",
            param="tensor_parallel",
        )


def error_of(message: Failed) -> StoaError:
    kind = getattr(errors, message.kind, StoaError)
    if kind.__init__ is not StoaError.__init__:
        kind = StoaError
    error = kind(message.message, param=message.param, code=message.code)
    assert isinstance(error, StoaError)
    return error


def _ended(follower: _Follower) -> EngineUnavailable:
    with contextlib.suppress(subprocess.TimeoutExpired):
        follower.process.wait(_NOTICE_S)
    return EngineUnavailable(
        f"rank {follower.rank} of the engine has ended (exit code {follower.process.returncode}); what it said is on stderr"
    )
