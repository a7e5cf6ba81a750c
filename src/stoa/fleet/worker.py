"""The engine process: `python -m stoa.fleet.worker --config JSON`, and where its gateways are:

    --socket PATH          one gateway, which waits there (Unix socket); the process ends with it
    --listen HOST:PORT     gateways come and go (TCP). They show the token in STOA_LINK_TOKEN. Port 0: any; the one taken is
                           printed as `stoa-listening: PORT`. SIGTERM: finish what runs, then end

    --wait                 imports everything, then waits for a line on stdin before it loads the model; ends when stdin does

The main thread does I/O on asyncio; another drives the engine (`engine_loop.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import hmac
import json
import os
import signal
import sys
import threading
import traceback
from importlib import import_module

import msgspec
import uvloop

from stoa.engine.config import EngineConfig
from stoa.errors import StoaError
from stoa.fleet.engine_loop import EngineLike, EngineLoop
from stoa.fleet.wire import (
    MAX_LOGIN_BYTES,
    FromEngine,
    Hello,
    Login,
    Ping,
    Pong,
    frame,
    read_to_engine,
)

STARTUP_ERROR = "stoa-startup-error:"  # a line on stderr; JSON with message and class follows
LISTENING = "stoa-listening:"  # a line on stdout; the port follows
TOKEN_VARIABLE = "STOA_LINK_TOKEN"
DEFAULT_FACTORY = "stoa.engine.engine:Engine"
LINK_LIMIT_BYTES = 1 << 20
_LOGIN_S = 5.0
_PR_SET_PDEATHSIG = 1


class GatewayPort:
    """A gateway's connection. Implements `engine_loop.Port`."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    def send(self, message: FromEngine) -> None:
        self._loop.call_soon_threadsafe(self.write, frame(message))

    def write(self, data: bytes) -> None:
        if not self._writer.is_closing():  # else nobody reads it any more
            self._writer.write(data)


class EngineServer:
    """Serves gateways until told to stop, drained, or the engine breaks."""

    def __init__(self, engine: EngineLike) -> None:
        self.engine = engine
        self.loop = EngineLoop(engine)
        self._over = asyncio.Event()
        self._io = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def over(self) -> None:
        """Waits until the engine's thread has ended."""
        await self._over.wait()
        await asyncio.sleep(0)  # what it sent last is on its way

    def _work(self) -> None:
        try:
            self.loop.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # another process replaces this one; nothing here can be trusted any more
        self._io.call_soon_threadsafe(self._over.set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One gateway, until it goes."""
        engine, port = self.engine, GatewayPort(writer)
        port.send(Hello(os.getpid(), engine.kernels_name, engine.notice, engine.max_model_len))
        self.loop.post(port, "enter")
        try:
            while True:
                message = await read_to_engine(reader)
                if isinstance(message, Ping):
                    port.send(Pong(self.loop.turns))
                else:
                    self.loop.post(port, message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.loop.post(port, "leave")
            writer.close()


async def serve_one(path: str, engine: EngineLike) -> None:
    """Connects to the gateway and works until it goes away or drains."""
    reader, writer = await asyncio.open_unix_connection(path, limit=LINK_LIMIT_BYTES)
    server = EngineServer(engine)
    server.start()
    serving = asyncio.create_task(server.serve(reader, writer))
    over = asyncio.create_task(server.over())
    await asyncio.wait({serving, over}, return_when=asyncio.FIRST_COMPLETED)
    server.loop.stop()
    await over
    serving.cancel()
    writer.close()


async def serve_many(address: str, token: str, engine: EngineLike) -> None:
    """Works until SIGTERM and whatever runs then has ended."""
    server = EngineServer(engine)
    host, _, port = address.rpartition(":")

    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the process ends
            if await _may_enter(reader, token):
                await server.serve(reader, writer)
        writer.close()

    listener = await asyncio.start_server(come, host, int(port), limit=LINK_LIMIT_BYTES)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.loop.drain)
    server.start()
    print(f"{LISTENING} {listener.sockets[0].getsockname()[1]}", flush=True)
    await server.over()
    listener.close()


async def _may_enter(reader: asyncio.StreamReader, token: str) -> bool:
    try:
        async with asyncio.timeout(_LOGIN_S):
            message = await read_to_engine(reader, MAX_LOGIN_BYTES)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return False
    return isinstance(message, Login) and hmac.compare_digest(message.token.encode(), token.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket")
    where.add_argument("--listen")
    parser.add_argument("--config", required=True)
    parser.add_argument("--factory", default=DEFAULT_FACTORY)
    parser.add_argument("--wait", action="store_true")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # of a whole group are the gateway's to handle
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if args.listen and not token:
        parser.error(f"--listen wants a token in {TOKEN_VARIABLE}")
    if args.wait:
        import_module(args.factory.split(":")[0])
        if not sys.stdin.readline():
            return
    engine = _make_engine(args.factory, args.config)
    gone = contextlib.suppress(ConnectionError, FileNotFoundError)  # the gateway went away meanwhile
    with gone, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_one(args.socket, engine) if args.socket else serve_many(args.listen, token, engine))


def _make_engine(factory: str, config: str) -> EngineLike:
    """Ends the process with a line that says why, if it cannot."""
    module, name = factory.split(":")
    try:
        engine: EngineLike = getattr(import_module(module), name)(
            msgspec.json.decode(config, type=EngineConfig)
        )
    except StoaError as error:
        facts = {"message": error.message, "class": type(error).__name__, "param": error.param}
        print(STARTUP_ERROR + json.dumps(facts), file=sys.stderr)
        sys.exit(3)
    return engine


if __name__ == "__main__":
    main()
