"""`stoa bench prefix`: what the prefix cache saves on a trace with real sharing.

The trace is Mooncake's (Qin et al., FAST 2025): arrival in ms, lengths, and the ids of 512-token blocks that
requests share. A block becomes one of ours (16 tokens that are a function of its id), so that lengths shrink by 32
and sharing stays as it was. Time is compressed so that, without a cache, prefilling alone takes `load` of it.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stoa.bench.drive import drive, percentile
from stoa.bench.folders import model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.errors import ConfigError

_TRACE_BLOCK = 512
_BLOCK = 16


@dataclass(frozen=True)
class Arrival:
    at_s: float
    blocks: tuple[int, ...]
    output_tokens: int


def run(
    model: str,
    trace: Path,
    *,
    cache: Path,
    requests: int = 600,
    load: float = 0.7,
    pool_gib: tuple[float, ...] = (1.0,),
) -> dict[str, Any]:
    arrivals = read_trace(trace, requests)
    folder = model_folder(model, cache)
    longest = max(len(a.blocks) for a in arrivals) * _BLOCK + 64
    base = {"model": str(folder), "max_model_len": longest, "speculation": False}
    rate = _prefill_rate(EngineConfig(**base, prefix_caching=False))  # type: ignore[arg-type]
    prompt_tokens = _BLOCK * sum(len(a.blocks) for a in arrivals)
    stretch = prompt_tokens / rate / load / (arrivals[-1].at_s - arrivals[0].at_s)
    rows = []
    for caching, gib in ((False, pool_gib[-1]), *((True, g) for g in pool_gib)):
        config = EngineConfig(**base, prefix_caching=caching, pool_bytes=int(gib * (1 << 30)))  # type: ignore[arg-type]
        rows.append(_replay(config, arrivals, stretch, gib))
    return {
        "machine": machine_facts(),
        "model": {"name": model},
        "workload": {"trace": trace.name, "requests": len(arrivals), "prompt_tokens": prompt_tokens, "load": load},
        "unlimited_hit_rate": round(unlimited_hit_rate(arrivals), 4),
        "rows": rows,
    }  # fmt: skip


def read_trace(path: Path, count: int) -> list[Arrival]:
    """The first `count` requests. Raises ConfigError if the file is not such a trace."""
    found = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            for line in file:
                row = json.loads(line)
                output = max(1, round(row["output_length"] * _BLOCK / _TRACE_BLOCK))
                found.append(Arrival(row["timestamp"] / 1000, tuple(row["hash_ids"]), output))
                if len(found) == count:
                    break
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a Mooncake trace: {error}") from None
    if len(found) < 2:
        raise ConfigError(f"{path} holds fewer than two requests")
    return found


def unlimited_hit_rate(arrivals: list[Arrival]) -> float:
    """Share of prompt tokens that a cache without bounds would have: all leading blocks ever seen, but the last
    token of a prompt, which is always computed, and so its block."""
    seen: set[int] = set()
    hits = total = 0
    for arrival in arrivals:
        total += len(arrival.blocks)
        for block in arrival.blocks[:-1]:
            if block not in seen:
                break
            hits += 1
        seen.update(arrival.blocks)
    return hits / total


def _prompt(blocks: tuple[int, ...], vocab: int) -> list[int]:
    ids: list[int] = []
    for block in blocks:
        ids += np.random.default_rng(block).integers(3, vocab, _BLOCK).tolist()
    return ids


def _prefill_rate(config: EngineConfig) -> float:
    """Prompt tokens a second."""
    engine = Engine(config)
    params = SamplingParams(max_tokens=1, temperature=0)
    times = []
    for i in range(4):
        ids = np.random.default_rng(i).integers(3, engine.model.vocab_size, 512).tolist()
        started = time.perf_counter()
        drive(engine, [(0.0, GenerationRequest(id=str(i), prompt_token_ids=ids, params=params))], 1)
        times.append(time.perf_counter() - started)
    engine.close()
    return 512 / statistics.median(times[1:])


def _replay(config: EngineConfig, arrivals: list[Arrival], stretch: float, gib: float) -> dict[str, Any]:
    engine = Engine(config)

    def asked() -> Iterator[tuple[float, GenerationRequest]]:
        for i, arrival in enumerate(arrivals):
            params = SamplingParams(max_tokens=arrival.output_tokens, temperature=0, ignore_eos=True)
            ids = _prompt(arrival.blocks, engine.model.vocab_size)
            at_s = (arrival.at_s - arrivals[0].at_s) * stretch
            yield at_s, GenerationRequest(id=str(i), prompt_token_ids=ids, params=params)

    outcome = drive(engine, asked())
    stats = engine.stats()
    engine.close()
    first = [t.first_s for t in outcome.timings]
    gaps = [g for t in outcome.timings for g in t.gaps_s]
    return {
        "cache": config.prefix_caching,
        "pool_gib": gib,
        "hit_rate": round(stats.prefix_hit_tokens / max(1, stats.prefix_query_tokens), 4),
        "ttft_ms_p50": round(1e3 * statistics.median(first), 1),
        "ttft_ms_p99": round(1e3 * percentile(first, 0.99), 1),
        "itl_ms_p99": round(1e3 * percentile(gaps, 0.99), 1) if gaps else 0.0,
        "wall_s": round(outcome.wall_s, 1),
    }
