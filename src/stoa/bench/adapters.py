"""`stoa bench adapters`: what many registered adapters cost, and what a cold one does.

A fixed number of requests is always running; each picks its adapter by Zipf's law from few or from many. Only
some of the many fit the pool, some more fit host memory, the rest lie on disk. Cold: the first token of a request
whose adapter was never read, against reading the adapter's file alone.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stoa.bench.drive import drive, percentile
from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.adapters.names import WEIGHTS_FILE


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
) -> dict[str, Any]:
    folder = model_folder(model, cache)
    config = EngineConfig(
        model=str(folder),
        max_num_seqs=at_once,
        pool_bytes=int(pool_gib * (1 << 30)),
        host_adapter_bytes=int(host_gib * (1 << 30)),
        prefix_caching=False,
        speculation=False,
    )
    refs = adapter_refs(folder, max(counts), rank, cache)
    rows = [_popular(config, refs[:n], zipf, requests, at_once, prompt_tokens, output_tokens) for n in counts]
    return {
        "machine": machine_facts(),
        "model": {"name": model, "rank": rank},
        "workload": {"requests": requests, "at_once": at_once, "zipf": zipf, "prompt_tokens": prompt_tokens,
                     "output_tokens": output_tokens, "pool_gib": pool_gib, "host_gib": host_gib},
        "rows": rows,
        "cold": _cold(config, refs[-48:], prompt_tokens),
    }  # fmt: skip


def _popular(
    config: EngineConfig,
    refs: list[AdapterRef],
    zipf: float,
    requests: int,
    at_once: int,
    prompt_tokens: int,
    output_tokens: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weight = np.arange(1, len(refs) + 1) ** -zipf
    chosen = rng.choice(len(refs), requests + 2 * at_once, p=weight / weight.sum())
    params = SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True)
    engine = Engine(config)

    def asked(picks: Sequence[int], name: str) -> Iterator[tuple[float, GenerationRequest]]:
        for i, pick in enumerate(picks):
            ids = rng.integers(3, engine.model.vocab_size, prompt_tokens).tolist()
            yield (
                0.0,
                GenerationRequest(id=f"{name}{i}", prompt_token_ids=ids, params=params, adapter=refs[pick]),
            )

    try:
        drive(engine, asked(chosen[requests:].tolist(), "warm"), at_once)
        before = engine.stats()
        outcome = drive(engine, asked(chosen[:requests].tolist(), "r"), at_once)
        after = engine.stats()
    finally:
        engine.close()
    first = [t.first_s for t in outcome.timings]
    return {
        "adapters": len(refs),
        "distinct": len(set(chosen[:requests].tolist())),
        "output_tok_s": round(outcome.output_tok_s, 1),
        "ttft_ms_p50": round(1e3 * statistics.median(first), 1),
        "ttft_ms_p99": round(1e3 * percentile(first, 0.99), 1),
        "loads": after.adapter_loads - before.adapter_loads,
        "evictions": after.adapter_evictions - before.adapter_evictions,
    }


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
