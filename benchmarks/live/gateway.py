"""`stoa serve` as a process, ready or not at all."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence

from stoa.bench.gateway import free_port


@contextlib.contextmanager
def serving(options: Sequence[str], *, replicas: int) -> Iterator[str]:
    """Its URL, once so many replicas are ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "stoa.cli",
            "serve",
            "--port",
            str(port),
            "--home",
            home,
            "--log-level",
            "error",
        ]
        process = subprocess.Popen([*command, *options])
        try:
            _until_ready(f"http://127.0.0.1:{port}", process, replicas)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def _until_ready(url: str, process: subprocess.Popen, replicas: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit("the gateway did not start")
        with contextlib.suppress(OSError):
            if f'state="ready"}} {float(replicas)}' in get(f"{url}/metrics"):
                return
        time.sleep(0.5)
    raise SystemExit("the replicas did not start")
