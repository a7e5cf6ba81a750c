"""`stoa bench lora`: what mixing adapters costs.

`batch` requests arrive at once, each with its own random prompt, greedy, all of them to the full output
length. Modes: "base" (no adapter), "same" (one adapter for all), "distinct" (one each). Adapters are resident
before the clock starts; a row is the median of `repeats` runs, in turn over all rows so that a slow minute of
the machine does not fall on one row alone.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stoa.bench.drive import Outcome, drive, percentile
from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.kernels import measure_read_bandwidth
from stoa.errors import ConfigError

MODES = ("base", "same", "distinct")


@dataclass(frozen=True)
class Workload:
    mode: str
    batch: int
    prompt_tokens: int
    output_tokens: int


def run(
    model: str,
    *,
    cache: Path,
    batches: Sequence[int] = (1, 8, 32),
    modes: Sequence[str] = MODES,
    prompt_tokens: int = 64,
    output_tokens: int = 64,
    rank: int = 16,
    repeats: int = 3,
    dtype: str = "bf16",
    quantize: str = "none",
    isa: str | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """`model`: a folder, or a shape of `SHAPES` whose random weights are written under `cache` once."""
    if min(*batches, prompt_tokens, output_tokens, rank, repeats) < 1:
        raise ConfigError("batch, prompt_tokens, output_tokens, rank and repeats must be 1 or above")
    unknown = set(modes) - set(MODES)
    if unknown:
        raise ConfigError(f"mode {', '.join(sorted(unknown))} is unknown; accepted: {', '.join(MODES)}")
    folder = model_folder(model, cache)
    refs = adapter_refs(folder, max(batches), rank, cache) if set(modes) - {"base"} else []
    engine = Engine(
        _engine_config(
            folder, refs, max(batches), prompt_tokens + output_tokens,
            {"dtype": dtype, "quantize": quantize, "isa": isa, "threads": threads},
        )
    )  # fmt: skip
    bandwidth = measure_read_bandwidth()
    workloads = [Workload(m, b, prompt_tokens, output_tokens) for m in modes for b in batches]
    runs: dict[Workload, list[Outcome]] = {w: [] for w in workloads}
    rng = np.random.default_rng(0)
    try:
        for repeat in range(repeats + 1):
            for load in workloads:
                result = _run_once(engine, load, refs, rng)
                if repeat:  # the first round warms up
                    runs[load].append(result)
        rows = [_row(engine, load, runs[load], bandwidth) for load in workloads]
    finally:
        engine.close()
    return {
        "machine": machine_facts() | {"read_bandwidth_gb_s": round(bandwidth, 2)},
        "model": {
            "name": model,
            "dtype": dtype,
            "quantize": quantize,
            "kernels": engine.kernels_name,
            "rank": rank,
        },
        "workload": {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "repeats": repeats},
        "rows": rows,
    }


def _engine_config(
    folder: Path, refs: list[AdapterRef], batch: int, tokens: int, settings: dict[str, Any]
) -> EngineConfig:
    adapter_bytes = 2 * sum(
        f.stat().st_size for r in refs for f in Path(r.path).glob("*.safetensors")
    )  # fp32 engines keep them twice as large
    known = {
        "model": str(folder),
        "max_model_len": tokens + 16,
        "max_num_seqs": batch,
        "pool_bytes": (2 << 30) + adapter_bytes,
        "host_adapter_bytes": max(adapter_bytes, 1 << 28),
        "max_lora_rank": 4096,
        "prefix_caching": False,
        "speculation": False,
    }
    try:
        return msgspec.convert(known | settings, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None


def _run_once(engine: Engine, load: Workload, refs: list[AdapterRef], rng: np.random.Generator) -> Outcome:
    chosen: dict[str, list[Any]] = {
        "base": [None] * load.batch,
        "same": refs[:1] * load.batch,
        "distinct": refs[: load.batch],
    }
    _make_resident(engine, [r for r in chosen[load.mode] if r is not None])
    vocab = engine.model.vocab_size
    params = SamplingParams(max_tokens=load.output_tokens, temperature=0, ignore_eos=True)
    requests = [
        GenerationRequest(
            id=str(i),
            prompt_token_ids=rng.integers(3, vocab, load.prompt_tokens).tolist(),
            params=params,
            adapter=ref,
        )
        for i, ref in enumerate(chosen[load.mode])
    ]
    return drive(engine, [(0.0, r) for r in requests])


def _make_resident(engine: Engine, refs: list[AdapterRef]) -> None:
    """One token from each adapter, outside the clock."""
    for ref in set(refs):
        params = SamplingParams(max_tokens=1, temperature=0)
        engine.add_request(GenerationRequest(id=ref.id, prompt_token_ids=[1], params=params, adapter=ref))
    while engine.has_requests:
        engine.step()
        if engine.idle:
            engine.wakeup.wait(0.1)
            engine.wakeup.clear()


def _row(engine: Engine, load: Workload, runs: list[Outcome], bandwidth_gb_s: float) -> dict[str, Any]:
    gaps = [g for r in runs for t in r.timings for g in t.gaps_s]
    ttft = [t.first_s for r in runs for t in r.timings]
    itl = statistics.median(gaps) if gaps else 0.0
    prefill = statistics.median(max(t.first_s for t in r.timings) for r in runs)
    floor = _step_bytes(engine, load) / (bandwidth_gb_s * 1e9)
    return {
        "mode": load.mode,
        "batch": load.batch,
        "output_tok_s": round(statistics.median(r.output_tok_s for r in runs), 1),
        "ttft_ms_p50": round(1e3 * statistics.median(ttft), 2),
        "prefill_ms": round(1e3 * prefill, 2),  # until the last request has its first token
        "itl_ms_p50": round(1e3 * itl, 3),
        "itl_ms_p99": round(1e3 * percentile(gaps, 0.99), 3) if gaps else 0.0,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "roofline_share": round(floor / itl, 3) if itl else 0.0,
    }


def _step_bytes(engine: Engine, load: Workload) -> float:
    """Bytes one decode step must read: weights, each adapter in use once, and the keys and values."""
    layout = engine.layout
    context = load.prompt_tokens + load.output_tokens / 2
    kv = load.batch * context * layout.page_bytes / layout.block_size
    used = {"base": 0, "same": 1, "distinct": load.batch}[load.mode]
    sizes = engine.adapters.packed_bytes()
    return engine.decoder.weight_bytes + kv + used * (statistics.mean(sizes) if sizes else 0)
