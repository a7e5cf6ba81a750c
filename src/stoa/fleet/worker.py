"""The engine process: `python -m stoa.fleet.worker --socket PATH --config JSON`.

The main thread does I/O on asyncio; one thread drives the engine. Messages wait in a deque that the engine
thread empties before each step.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from typing import Any, Protocol

import msgspec
import uvloop

from stoa.engine.accounting import Accounts
from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import Interval, RequestUsage
from stoa.errors import StoaError
from stoa.fleet.wire import (
    Cancel,
    Drain,
    Events,
    Forget,
    FromEngine,
    GetStats,
    Hello,
    ToEngine,
    Usages,
    Warm,
    frame,
    read_to_engine,
)

STARTUP_ERROR = "stoa-startup-error:"  # a line on stderr; JSON with message and class follows
DEFAULT_FACTORY = "stoa.engine.engine:Engine"
_PR_SET_PDEATHSIG = 1


class EngineLike(Protocol):
    """What the worker drives. Implemented by `stoa.engine.Engine` and the tests' fake."""

    idle: bool
    wakeup: threading.Event
    max_model_len: int
    accounts: Accounts

    @property
    def has_requests(self) -> bool: ...
    @property
    def kernels_name(self) -> str: ...
    @property
    def notice(self) -> str: ...
    def add_request(self, request: GenerationRequest) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def warm(self, ref: AdapterRef) -> None: ...
    def forget(self, adapter_id: str) -> None: ...
    def step(self) -> list[TokenEvent]: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


class Worker:
    """Runs the step loop on its own thread; `send` is called on that thread."""

    def __init__(self, engine: EngineLike, send: Any) -> None:
        self.engine = engine
        self.send = send
        self.inbox: collections.deque[ToEngine] = collections.deque()
        self.draining = False
        self.stopping = False

    def post(self, message: ToEngine) -> None:
        self.inbox.append(message)
        self.engine.wakeup.set()

    def run(self) -> None:
        """Steps until drained or stopped."""
        engine = self.engine
        while not self.stopping:
            events = self._take_inbox()
            if engine.has_requests:
                events += engine.step()
            if events:
                self.send(Events(events))
            self._report()
            if self.inbox:
                continue
            if self.draining and not engine.has_requests:
                break
            if engine.idle or not engine.has_requests:
                engine.wakeup.wait(0.5)
                engine.wakeup.clear()
        self._report(final=True)
        engine.close()

    def _report(self, *, final: bool = False) -> None:
        reports = self.engine.accounts.reports(final=final)
        usages = [r for r in reports if isinstance(r, RequestUsage)]
        if usages:
            self.send(Usages(usages))
        for report in reports:
            if isinstance(report, Interval):
                self.send(report)

    def _take_inbox(self) -> list[TokenEvent]:
        failed = []
        while self.inbox:
            message = self.inbox.popleft()
            try:
                self._handle(message)
            except StoaError as error:
                assert isinstance(message, GenerationRequest)
                failed += _refusals(message, error)
                self.send(Usages([RequestUsage(request_id=message.id, outcome="error")]))
        return failed

    def _handle(self, message: ToEngine) -> None:
        engine = self.engine
        match message:
            case GenerationRequest():
                engine.add_request(message)
            case Cancel():
                engine.cancel(message.request_id)
            case Warm():
                engine.warm(message.adapter)
            case Forget():
                engine.forget(message.adapter_id)
            case GetStats():
                self.send(engine.stats())
            case Drain():
                self.draining = True


def _refusals(request: GenerationRequest, error: StoaError) -> list[TokenEvent]:
    code = error.code or error.type
    return [
        TokenEvent(
            request_id=request.id,
            finish_reason="error",
            error=error.message,
            error_code=code,
            error_param=error.param,
        )
    ]


async def serve(socket: str, engine: EngineLike) -> None:
    """Connects to the gateway and works until it goes away, drains, or the engine breaks."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=1 << 20)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def write(data: bytes) -> None:
        if not writer.is_closing():  # else nobody reads it any more
            writer.write(data)

    def send(message: FromEngine) -> None:
        loop.call_soon_threadsafe(write, frame(message))

    worker = Worker(engine, send)
    send(
        Hello(
            pid=os.getpid(),
            kernels=engine.kernels_name,
            notice=engine.notice,
            max_model_len=engine.max_model_len,
            started_ns=engine.accounts.started_ns,
            pool_bytes=engine.accounts.pool_bytes,
        )
    )

    def work() -> None:
        try:
            worker.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the gateway restarts us; nothing here can be trusted any more
        loop.call_soon_threadsafe(over.set)

    thread = threading.Thread(target=work, name="engine", daemon=True)
    thread.start()
    receiving = asyncio.create_task(_receive(reader, worker))
    finishing = asyncio.create_task(over.wait())
    await asyncio.wait({receiving, finishing}, return_when=asyncio.FIRST_COMPLETED)
    if not over.is_set():
        worker.stopping = True
        engine.wakeup.set()
        await over.wait()
    receiving.cancel()
    await asyncio.sleep(0)
    writer.close()


async def _receive(reader: asyncio.StreamReader, worker: Worker) -> None:
    """Until the gateway closes its end."""
    while True:
        try:
            worker.post(await read_to_engine(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--factory", default=DEFAULT_FACTORY)
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # of a whole group are the gateway's to handle
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    module, name = args.factory.split(":")
    try:
        engine = getattr(import_module(module), name)(msgspec.json.decode(args.config, type=EngineConfig))
    except StoaError as error:
        facts = {"message": error.message, "class": type(error).__name__, "param": error.param}
        print(STARTUP_ERROR + json.dumps(facts), file=sys.stderr)
        sys.exit(3)
    gone = contextlib.suppress(ConnectionError, FileNotFoundError)  # the gateway went away meanwhile
    with gone, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.socket, engine))


if __name__ == "__main__":
    main()
