"""From `stoa serve` to /ready, and the memory that the engine process needs beyond weights and pool.

python benchmarks/startup.py --model 134m --out docs/results/startup-134m.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from stoa.bench.folders import model_folder
from stoa.bench.gateway import free_port
from stoa.bench.machine import machine_facts
from stoa.config import load_settings


def start_once(folder: Path, home: str) -> dict[str, float]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "stoa.cli",
        "serve",
        "--model",
        str(folder),
        "--port",
        str(port),
        "--home",
        home,
    ]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _ready(url):
            time.sleep(0.005)
        ready_s = time.perf_counter() - started
        body = {"model": folder.name, "prompt": [5] * 64, "max_tokens": 64, "temperature": 0}
        httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status()
        (engine,) = _children(server.pid)
        return {
            "ready_s": ready_s,
            "engine_peak_mb": _peak_mb(engine),
            "gateway_peak_mb": _peak_mb(server.pid),
        }
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def _children(pid: int) -> list[int]:
    return [int(c) for task in os.listdir(f"/proc/{pid}/task")
            for c in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]  # fmt: skip


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(text for text in status.splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _weights_mb(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="134m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = model_folder(args.model, load_settings().home_path / "cache")
    with tempfile.TemporaryDirectory() as home:
        start_once(folder, home)  # the file goes to the system's cache, Python's bytecode to disk
        runs = [start_once(folder, home) for _ in range(args.repeats)]
    facts: dict[str, Any] = {k: round(statistics.median(r[k] for r in runs), 3) for k in runs[0]}
    facts["weights_mb"] = round(_weights_mb(folder), 1)
    facts["engine_beyond_weights_mb"] = round(facts["engine_peak_mb"] - facts["weights_mb"], 1)
    print(json.dumps(facts))
    if args.out:
        report = {"machine": machine_facts(), "model": args.model, "repeats": args.repeats, **facts}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
