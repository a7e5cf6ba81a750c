"""`stoa bench gateway`: what the gateway costs a request, with keys, limits, budget and metering on.

A real `stoa serve` on one core, its engine replaced by one that computes nothing, on another. Added: what a request
takes longer than the engine, which takes a set time for each token, at many requests at once. Most: requests a second when
the engine answers at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from stoa.bench.drive import percentile
from stoa.bench.fake_engine import CORES, TOKEN_MS
from stoa.bench.load import Load, post, run_load
from stoa.bench.machine import machine_facts
from stoa.errors import ConfigError

_READY_S = 30.0
BODY = {
    "model": "stoa-demo",
    "messages": [{"role": "user", "content": "Say something about the weather in Athens in two sentences."}],
}
TOKENS = range(8, 25)  # of answers


def run(
    *, connections: int = 200, seconds: float = 10.0, delay_ms: float = 500.0, db: str = ""
) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError("the gateway and the rest need a core each; this process may use one only")
    found: dict[str, Any] = {}
    os.sched_setaffinity(0, cores[1:])
    gc.freeze()
    try:
        for name, delay in (("added", delay_ms), ("most", 0.0)):
            with (
                tempfile.TemporaryDirectory() as folder,
                _gateway(Path(folder), delay, cores, db) as (port, key),
            ):
                requests = make_requests(key, delay)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    load = runner.run(run_load(port, requests, connections=connections, seconds=seconds))
                found[name] = row(load)
    finally:
        os.sched_setaffinity(0, cores)
    return {
        "machine": machine_facts(),
        "workload": {"connections": connections, "seconds": seconds, "delay_ms": delay_ms,
                     "db": db.partition(":")[0] or "sqlite"},
        **found,
    }  # fmt: skip


def make_requests(key: str, delay_ms: float) -> list[tuple[bytes, float]]:
    """Questions with answers of different lengths, and how long the engine takes for each, `delay_ms` on average."""
    return [
        (
            post("bench", "/v1/chat/completions", json.dumps(BODY | {"max_tokens": n}).encode(), key),
            token_ms(delay_ms) / 1000 * n,
        )
        for n in TOKENS
    ]


def token_ms(delay_ms: float) -> float:
    return delay_ms * len(TOKENS) / sum(TOKENS)


def row(load: Load) -> dict[str, Any]:
    """What a run says; latencies beyond the engine's own."""
    if not load.seconds or load.refused:
        raise RuntimeError(f"{load.refused} of {len(load.seconds)} requests were refused")
    return {
        "requests_per_s": round(load.per_s),
        "p50_ms": round(1e3 * statistics.median(load.seconds), 2),
        "p99_ms": round(1e3 * percentile(load.seconds, 0.99), 2),
    }


@contextmanager
def _gateway(home: Path, delay_ms: float, cores: list[int], db: str) -> Iterator[tuple[int, str]]:
    """(port, key) of a server whose project has limits and a budget that are never reached."""
    stoa = [sys.executable, "-m", "stoa.cli"]
    more = {
        "STOA_HOME": str(home), "STOA_DB": db, "STOA_LOG_LEVEL": "warning", TOKEN_MS: str(token_ms(delay_ms)),
        CORES: ",".join(map(str, cores[1:])), "STOA_ENGINE_FACTORY": "stoa.bench.fake_engine:FakeEngine",
    }  # fmt: skip
    environ = os.environ | more
    many = "100000000"
    limits = ["--rpm", many, "--tpm", many, "--concurrent", "100000"]
    added = _json([*stoa, "tenant", "add", f"bench-{os.getpid()}-{delay_ms:g}", "--json"], environ)
    project = added["id"]
    _json([*stoa, "tenant", "set", project, *limits, "--budget", "1000000", "--json"], environ)
    key = _json([*stoa, "key", "add", project, "--json"], environ)
    port = free_port()
    process = subprocess.Popen(
        [*stoa, "serve", "--port", str(port), "--max-queue", "100000"],
        env=environ,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]),
    )
    try:
        wait_ready(f"http://127.0.0.1:{port}/ready", process)
        yield port, key["secret"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _json(command: list[str], environ: dict[str, str]) -> Any:
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(done.stderr.strip())
    return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(url: str, process: subprocess.Popen[bytes], patience_s: float = _READY_S) -> None:
    """Until `url` answers. Raises ConfigError."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise ConfigError(f"{url} did not get ready")
