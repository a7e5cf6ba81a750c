"""`stoa bench coldstart`: from nothing to the first token, stage by stage, against what cannot be saved.

The floor is a Python process, until it has imported the libraries that the engine cannot do without (`_NEEDED`), and
reading the weights' files once from the system's page cache into memory that is reused. A start is an engine process of
its own (`coldstart_child.py`), to the first token of a short request:

    packs     weights are read, checked and packed; the packed ones are written for the next time
    maps      packed weights are mapped
    spare     the same, by a process that was started before and had imported everything

Each stage begins where the one before ends. Everything is measured in turns, `repeats` times, and medians are shown. The
files are in the page cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from stoa.bench.folders import model_folder
from stoa.bench.machine import machine_facts
from stoa.engine.config import EngineConfig, Quantize

_NEEDED = "import torch, numpy, msgspec, uvloop, tokenizers, safetensors"
_CHUNK_BYTES = 8 << 20
_KINDS = ("packs", "maps", "spare")


def run(
    model: str,
    *,
    cache: Path,
    quantize: Quantize = "none",
    threads: int = 0,
    repeats: int = 5,
) -> dict[str, Any]:
    folder = model_folder(model, cache)
    weights = sorted(folder.glob("*.safetensors"))
    floors: list[dict[str, float]] = []
    starts: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as kept:
        config = EngineConfig(
            model=str(folder), quantize=quantize, threads=threads, pool_bytes=1 << 28, weights_cache=kept
        )
        _floor(weights)  # files come into the page cache, bytecode to disk
        for _ in range(repeats):
            floors.append(_floor(weights))
            for kind, measured in starts.items():
                measured.append(_start(config, kind))
    floor = _medians(floors)
    rows = []
    for kind, measured in starts.items():
        whole_s = statistics.median(sum(stages.values()) for stages in measured)
        rows.append({
            "start": kind,
            **_medians(measured),
            "whole_s": round(whole_s, 3),
            "times_floor": round(whole_s / (floor["imports_s"] + floor["read_s"]), 2),
        })  # fmt: skip
    return {
        "machine": machine_facts(),
        "model": {
            "name": model,
            "quantize": quantize,
            "weights_mb": round(sum(f.stat().st_size for f in weights) / 1e6, 1),
        },
        "floor": floor | {"floor_s": round(floor["imports_s"] + floor["read_s"], 3)},
        "rows": rows,
    }


def _medians(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(m[name] for m in measured), 3) for name in measured[0]}


def _floor(weights: Sequence[Path]) -> dict[str, float]:
    return {"interpreter_s": _python(""), "imports_s": _python(f"{_NEEDED}; "), "read_s": _read(weights)}


def _python(code: str) -> float:
    """Seconds from the process's start to the end of `code`."""
    began_s = time.monotonic()
    said = subprocess.check_output([sys.executable, "-c", f"{code}import time; print(time.monotonic())"])
    return float(said) - began_s


def _read(files: Sequence[Path]) -> float:
    """Seconds to copy the files' bytes from the page cache, once."""
    into = bytearray(_CHUNK_BYTES)
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(into):
                pass
    return time.perf_counter() - started


def _start(config: EngineConfig, kind: str) -> dict[str, float]:
    """Stage -> seconds, of one start."""
    if kind == "packs":
        for kept in Path(config.weights_cache).iterdir():
            kept.unlink()
    command = [sys.executable, "-m", "stoa.bench.coldstart_child", kind]
    began_s = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if kind == "spare":
            process.stdout.readline()  # it waits
            began_s = time.monotonic()
        process.stdin.write(msgspec.json.encode(config).decode() + "\n")
        process.stdin.flush()
        stamps: list[tuple[str, float]] = json.loads(process.stdout.readline())
        process.stdin.close()
    ends = [began_s, *(at_s for _, at_s in stamps)]
    return {f"{name}_s": end - begin for (name, _), begin, end in zip(stamps, ends, ends[1:], strict=False)}
