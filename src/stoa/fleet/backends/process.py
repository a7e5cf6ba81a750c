"""An engine process that listens (`worker --listen`), for whoever supervises it: a gateway here, an actor elsewhere."""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

import msgspec

from stoa.engine.config import EngineConfig
from stoa.errors import EngineUnavailable, OutOfMemory, StoaError
from stoa.fleet.local import start_error
from stoa.fleet.reports import Trouble
from stoa.fleet.worker import DEFAULT_FACTORY, LISTENING, STARTUP_ERROR, TOKEN_VARIABLE

_STDERR_LINES = 40
_END_S = 1.0
_NO_MEMORY = ("MemoryError", "bad_alloc", "out of memory", "not enough memory", "Cannot allocate memory")


class EngineProcess:
    """Started by the constructor. Nothing here waits but `end`; threads read what the process prints."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        host: str,
        token: str,
        factory: str = DEFAULT_FACTORY,
        changed: Callable[[], None] = lambda: None,
        wait: bool = False,
    ) -> None:
        """`host`: the address to listen at; `changed`: told on another thread when it is ready, and when it has ended;
        `wait`: it imports everything and loads the model after `go`. The process ends with the thread that made it."""
        self.host = host
        self._changed = changed
        self.port: int | None = None  # once it is ready
        self.waits = wait
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "stoa.fleet.worker", "--listen", f"{host}:0", "--factory", factory,
                "--config", msgspec.json.encode(config).decode(), *(("--wait",) if wait else ()),
            ],
            env=os.environ | {TOKEN_VARIABLE: token},
            stdin=subprocess.PIPE if wait else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_port, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        """ "" until it is ready."""
        return f"{self.host}:{self.port}" if self.port is not None else ""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def killed(self) -> bool:
        """It has ended, and not by itself."""
        return (self._process.poll() or 0) < 0

    def go(self) -> None:
        """Wait no longer."""
        assert self._process.stdin is not None
        self.waits = False
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(b"go\n")

    def trouble(self) -> Trouble | None:
        """Why it ended before it was ready; None while it lives, or if it was ready."""
        if self.alive or self.port is not None:
            return None
        for reader in self._readers:
            reader.join(1.0)
        return Trouble.of(_why(self._process.returncode, self._stderr))

    def end(self) -> None:
        """Waits until it is gone: a moment for its books, if it was ready."""
        if self.port is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()
        if self.waits and self._process.stdin is not None:
            self._process.stdin.close()
        for reader in self._readers:
            reader.join(1.0)

    def _read_port(self, stdout: IO[bytes]) -> None:
        with stdout:
            for raw in stdout:
                line = raw.decode(errors="replace")
                if line.startswith(LISTENING):
                    self.port = int(line.removeprefix(LISTENING))
                    self._changed()
        self._changed()

    def _read_errors(self, stderr: IO[bytes]) -> None:
        with stderr:
            for raw in stderr:
                line = raw.decode(errors="replace")
                self._stderr.append(line)
                if not line.startswith(STARTUP_ERROR):
                    sys.stderr.write(line)


def _why(returncode: int, stderr: collections.deque[str]) -> StoaError:
    """Only the engine's own refusals are sure to come again on another machine."""
    told = start_error(stderr)
    if isinstance(told, OutOfMemory) or not isinstance(told, EngineUnavailable):
        return told
    if returncode == -9 or any(word in line for line in stderr for word in _NO_MEMORY):
        return EngineUnavailable(
            "the machine ran out of memory while the engine loaded; give it more, or choose a smaller --pool-gib or "
            "--quantize\n" + "".join(stderr)
        )
    return told
