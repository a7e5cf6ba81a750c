"""`stoa bench adapters`: what many registered adapters cost, and what a cold one does.

A fixed number of requests is always running; each picks its adapter by Zipf's law from few or from many. Only
some of the many fit the pool, some more fit host memory, the rest lie on disk. Cold: the first token of a request
whose adapter was never read, against reading the adapter's file alone.

More adapters than a disk holds: with `folders`, only so many are written, and the others are their bytes under other
names. With `preload` every adapter is in host memory before the clock starts (a GPU's engine keeps each, laid out, in
pinned memory of its own): what is measured then is the way from there to the pool, and `send_floor_s` says what a GPU's
bus alone would take for it.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stoa.bench.drive import drive, percentile
from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.lora import tuned
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.adapters.names import WEIGHTS_FILE
from stoa.engine.kernels.interface import PackedAdapter
from stoa.errors import ConfigError


def run(
    model: str,
    *,
    cache: Path,
    counts: Sequence[int] = (32, 2000),
    zipf: float = 1.0,
    requests: int = 512,
    at_once: int = 32,
    prompt_tokens: int = 64,
    output_tokens: int = 64,
    rank: int = 16,
    pool_gib: float = 2.0,
    host_gib: float = 4.0,
    device: str = "cpu",
    folders: int = 0,
    preload: bool = False,
    max_batch_tokens: int = 0,
    cold: bool = True,
) -> dict[str, Any]:
    folder = model_folder(model, cache, device)
    rates = _rates(device)
    config = EngineConfig(
        model=str(folder),
        device="cuda" if device == "cuda" else "cpu",
        max_num_seqs=at_once,
        max_batch_tokens=max_batch_tokens,
        max_model_len=prompt_tokens + output_tokens + 16 if device == "cuda" else 0,
        pool_bytes=int(pool_gib * (1 << 30)),
        host_adapter_bytes=int(host_gib * (1 << 30)),
        prefix_caching=False,
        speculation=False,
        weights_cache=tuned(cache, device),
    )
    refs = adapter_refs(folder, max(counts), rank, cache, device, folders)
    workload = Workload(requests, at_once, zipf, prompt_tokens, output_tokens, preload)
    rows = []
    for n in counts:
        rows.append(_popular(config, refs[:n], workload, rates))
        gc.collect()  # a GPU has no room for two engines
    return {
        "machine": machine_facts() | rates,
        "model": {"name": model, "rank": rank},
        "workload": {"requests": requests, "at_once": at_once, "zipf": zipf, "prompt_tokens": prompt_tokens,
                     "output_tokens": output_tokens, "pool_gib": pool_gib, "host_gib": host_gib,
                     "folders": folders, "preload": preload},
        "rows": rows,
        "cold": _cold(config, refs[-48:], prompt_tokens) if cold else [],
    }  # fmt: skip


@dataclass(frozen=True)
class Workload:
    requests: int
    at_once: int
    zipf: float
    prompt_tokens: int
    output_tokens: int
    preload: bool


def _rates(device: str) -> dict[str, Any]:
    """What a GPU is and how fast; {} for a CPU."""
    if device == "cpu":
        return {}
    from stoa.bench.gpu import ceilings, gpu_facts  # Triton, which CPUs do without

    return gpu_facts() | ceilings()


def _popular(
    config: EngineConfig, refs: list[AdapterRef], load: Workload, rates: dict[str, Any]
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weight = np.arange(1, len(refs) + 1) ** -load.zipf
    chosen = rng.choice(len(refs), load.requests + 2 * load.at_once, p=weight / weight.sum())
    params = SamplingParams(max_tokens=load.output_tokens, temperature=0, ignore_eos=True)
    engine = Engine(config)

    def asked(picks: Sequence[int], name: str) -> Iterator[tuple[float, GenerationRequest]]:
        for i, pick in enumerate(picks):
            ids = rng.integers(3, engine.model.vocab_size, load.prompt_tokens).tolist()
            yield (
                0.0,
                GenerationRequest(id=f"{name}{i}", prompt_token_ids=ids, params=params, adapter=refs[pick]),
            )

    try:
        placing = _Placing(engine)
        if load.preload:
            _preload(engine, refs)
        drive(engine, asked(chosen[load.requests :].tolist(), "warm"), load.at_once)
        before, count, seconds = engine.stats(), placing.count, placing.seconds
        outcome = drive(engine, asked(chosen[: load.requests].tolist(), "r"), load.at_once)
        after = engine.stats()
        placed, size = placing.count - count, placing.nbytes
        first = [t.first_s for t in outcome.timings]
        return {
            "adapters": len(refs),
            "distinct": len(set(chosen[: load.requests].tolist())),
            "output_tok_s": round(outcome.output_tok_s, 1),
            "ttft_ms_p50": round(1e3 * statistics.median(first), 1),
            "ttft_ms_p99": round(1e3 * percentile(first, 0.99), 1),
            "loads": after.adapter_loads - before.adapter_loads,
            "evictions": after.adapter_evictions - before.adapter_evictions,
            "placed": placed,  # in the pool
            "adapter_mb": round(size / 1e6, 2),
            "place_ms": round(1e3 * (placing.seconds - seconds) / placed, 2) if placed else 0.0,
            "wall_s": round(outcome.wall_s, 3),
            **_send_floor(placed * size, rates),
        }
    finally:
        engine.close()


def _send_floor(nbytes: int, rates: dict[str, Any]) -> dict[str, float]:
    """Seconds that the bus takes for them at the least; {} for a CPU."""
    if not rates:
        return {}
    return {"send_floor_s": round(nbytes / (rates["host_to_device_gb_s"] * 1e9), 4)}


class _Placing:
    """How often an engine lays an adapter out in the pool, how long that takes, and how large the largest is."""

    def __init__(self, engine: Engine) -> None:
        self.count, self.seconds, self.nbytes = 0, 0.0, 0
        kernels: Any = engine.kernels
        self._stage: Callable[..., Callable[[Tensor], PackedAdapter]] = kernels.stage_adapter
        kernels.stage_adapter = self._timed

    def _timed(self, *args: Any) -> Callable[[Tensor], PackedAdapter]:
        lay_out = self._stage(*args)

        def timed(dst: Tensor) -> PackedAdapter:
            started = time.perf_counter()
            packed = lay_out(dst)
            self.seconds += time.perf_counter() - started  # one loader thread
            self.count += 1
            self.nbytes = max(self.nbytes, packed.nbytes)
            return packed

        return timed


def _preload(engine: Engine, refs: list[AdapterRef]) -> None:
    """Reads all into host memory. A file is read and checked once."""
    by_path = {ref.path: ref for ref in refs}
    checked = {path: engine.adapters.read(ref) for path, ref in by_path.items()}
    engine.adapters.read = lambda ref: checked[ref.path]
    for ref in refs:
        engine.warm(ref)
    while len(engine.adapters.held) < len(refs):
        if engine.adapters.loads >= len(refs):
            raise ConfigError(
                f"{len(refs)} adapters do not fit host memory; raise host_gib", param="host_gib"
            )
        engine.wakeup.wait(0.1)
        engine.wakeup.clear()


def _cold(config: EngineConfig, refs: list[AdapterRef], prompt_tokens: int) -> list[dict[str, Any]]:
    """Medians over `refs`, half of them with the shortest prompt there is; each file is dropped from the
    system's cache first, where that is allowed."""
    half = len(refs) // 2
    engine = Engine(config)
    engine.pool.arena.fill_(0)  # memory that was never used costs more at first touch; a running server's was
    try:
        return [
            _first_tokens(engine, refs[:half], 1),
            _first_tokens(engine, refs[half:], prompt_tokens),
        ]
    finally:
        engine.close()


def _first_tokens(engine: Engine, refs: list[AdapterRef], prompt_tokens: int) -> dict[str, Any]:
    params = SamplingParams(max_tokens=1, temperature=0)
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {"read": [], "cold": [], "resident": [], "base": []}
    for i, ref in enumerate(refs):
        ids = rng.integers(3, engine.model.vocab_size, prompt_tokens).tolist()
        file = Path(ref.path) / WEIGHTS_FILE
        _drop(file)
        started = time.perf_counter()
        file.read_bytes()
        found["read"].append(time.perf_counter() - started)
        _drop(file)
        for kind, adapter in (("cold", ref), ("resident", ref), ("base", None)):
            request = GenerationRequest(id=f"{kind}{i}", prompt_token_ids=ids, params=params, adapter=adapter)
            found[kind].append(drive(engine, [(0.0, request)], 1).timings[0].first_s)
    ms = {f"{kind}_ms": round(1e3 * statistics.median(values), 2) for kind, values in found.items()}
    size = (Path(refs[0].path) / WEIGHTS_FILE).stat().st_size
    return {"prompt_tokens": prompt_tokens, "adapter_mb": round(size / 1e6, 2), **ms}


def _drop(file: Path) -> None:
    """Out of the page cache: clean pages go when they are not wanted."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
