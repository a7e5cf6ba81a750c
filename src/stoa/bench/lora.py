"""`stoa bench lora`: what mixing adapters costs.

`batch` requests arrive at once, each with its own random prompt, greedy, all of them to the full output
length. Modes: "base" (no adapter), "same" (one adapter for all), "distinct" (one each). Adapters are resident
before the clock starts; a row is the median of `repeats` runs, in turn over all rows so that a slow minute of
the machine does not fall on one row alone.

On a GPU, `itl_ms_p50` is still what a user sees, by the host's clock; `gpu_ms_p50` is how long the GPU worked in such a
step, and `host_share` the part of a step in which it did not.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stoa.bench.drive import Outcome, drive, percentile
from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.kernels import measure_read_bandwidth
from stoa.engine.model.config import read_model_config
from stoa.errors import ConfigError

MODES = ("base", "same", "distinct")


@dataclass(frozen=True)
class Workload:
    mode: str
    batch: int
    prompt_tokens: int
    output_tokens: int


@dataclass
class _Device:
    """Where the engine runs, and the rates that its steps are held against."""

    name: str
    facts: dict[str, Any]
    rates: dict[str, float]  # of a GPU: as `gpu.ceilings`
    clock: Any = None  # gpu.StepClock
    gpu_s: dict[Workload, list[float]] = field(default_factory=dict)

    @classmethod
    def find(cls, name: str) -> _Device:
        if name == "cpu":
            rate = round(measure_read_bandwidth(), 2)
            return cls(name, {"read_bandwidth_gb_s": rate}, {"read_gb_s": rate})
        from stoa.bench.gpu import (
            StepClock,
            ceilings,
            forget_memory,
            gpu_facts,
        )  # Triton, which CPUs do without
        from stoa.engine.kernels.cuda.device import find_gpu

        rates = ceilings()
        device = find_gpu().device
        forget_memory(device)
        return cls(name, gpu_facts() | rates, rates, StepClock(device))

    def floor_s(self, nbytes: float, operations: float) -> float:
        if self.clock is None:
            return nbytes / (self.rates["read_gb_s"] * 1e9)
        from stoa.bench.gpu import floor_s

        return floor_s(nbytes, operations, self.rates)

    def peak(self) -> dict[str, float]:
        if self.clock is None:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {"peak_rss_mb": round(most / 1024, 1)}
        from stoa.bench.gpu import peak_mb

        return {"peak_gpu_mb": peak_mb(self.clock.device)}


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
    device: str = "cpu",
    max_batch_tokens: int = 0,
) -> dict[str, Any]:
    """`model`: a folder, or a shape of `SHAPES` whose random weights are written under `cache` once."""
    if min(*batches, prompt_tokens, output_tokens, rank, repeats) < 1:
        raise ConfigError("batch, prompt_tokens, output_tokens, rank and repeats must be 1 or above")
    unknown = set(modes) - set(MODES)
    if unknown:
        raise ConfigError(f"mode {', '.join(sorted(unknown))} is unknown; accepted: {', '.join(MODES)}")
    folder = model_folder(model, cache, device)
    refs = adapter_refs(folder, max(batches), rank, cache, device) if set(modes) - {"base"} else []
    where = None if device == "cpu" else _Device.find(device)  # while nothing else is in a GPU's memory
    engine = Engine(
        engine_config(
            folder, refs, max(batches), prompt_tokens + output_tokens,
            {"dtype": dtype, "quantize": quantize, "isa": isa, "threads": threads, "device": device,
             "max_batch_tokens": max_batch_tokens, "weights_cache": tuned(cache, device)},
        )
    )  # fmt: skip
    where = where or _Device.find(device)
    workloads = [Workload(m, b, prompt_tokens, output_tokens) for m in modes for b in batches]
    runs: dict[Workload, list[Outcome]] = {w: [] for w in workloads}
    rng = np.random.default_rng(0)
    try:
        with where.clock.on(engine) if where.clock is not None else contextlib.nullcontext():
            for repeat in range(repeats + 1):
                for load in workloads:
                    result = _run_once(engine, load, refs, rng)
                    played = where.clock.take() if where.clock is not None else []
                    if repeat:  # the first round warms up
                        runs[load].append(result)
                        where.gpu_s.setdefault(load, []).extend(played)
        rows = [_row(engine, load, runs[load], where) for load in workloads]
    finally:
        engine.close()
    return {
        "machine": machine_facts() | where.facts,
        "model": {
            "name": model,
            "dtype": dtype,
            "quantize": quantize,
            "kernels": engine.kernels_name,
            "rank": rank,
        },
        "workload": {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "repeats": repeats,
                     "max_batch_tokens": engine.config.step_rows},
        "rows": rows,
    }  # fmt: skip


def tuned(cache: Path, device: str) -> str:
    """Where an engine keeps what it has measured about kernels of its GPU; nothing else is kept for one."""
    return "" if device == "cpu" else str(cache / "weights")


def engine_config(
    folder: Path, refs: list[AdapterRef], batch: int, tokens: int, settings: dict[str, Any]
) -> EngineConfig:
    adapter_bytes = 2 * sum(
        f.stat().st_size for r in refs for f in Path(r.path).glob("*.safetensors")
    )  # fp32 engines keep them twice as large
    c = read_model_config(folder)
    kv_bytes = batch * (tokens + 32) * 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4
    known = {
        "model": str(folder),
        "max_model_len": tokens + 16,
        "max_num_seqs": batch,
        "pool_bytes": max(2 << 30, kv_bytes) + adapter_bytes,
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


def _row(engine: Engine, load: Workload, runs: list[Outcome], where: _Device) -> dict[str, Any]:
    gaps = [g for r in runs for t in r.timings for g in t.gaps_s]
    ttft = [t.first_s for r in runs for t in r.timings]
    itl = statistics.median(gaps) if gaps else 0.0
    prefill = statistics.median(max(t.first_s for t in r.timings) for r in runs)
    floor = where.floor_s(_step_bytes(engine, load), 2 * _step_products(engine, load))
    return {
        "mode": load.mode,
        "batch": load.batch,
        "output_tok_s": round(statistics.median(r.output_tok_s for r in runs), 1),
        "ttft_ms_p50": round(1e3 * statistics.median(ttft), 2),
        "prefill_ms": round(1e3 * prefill, 2),  # until the last request has its first token
        "itl_ms_p50": round(1e3 * itl, 3),
        "itl_ms_p99": round(1e3 * percentile(gaps, 0.99), 3) if gaps else 0.0,
        **where.peak(),
        "roofline_share": round(floor / itl, 3) if itl else 0.0,
        **_gpu_columns(where.gpu_s.get(load, []), itl, floor),
    }


def _gpu_columns(gpu_s: list[float], itl_s: float, floor_s: float) -> dict[str, Any]:
    """{} where no step was timed on a GPU."""
    if not gpu_s or not itl_s:
        return {}
    median = statistics.median(gpu_s)
    return {
        "floor_ms": round(1e3 * floor_s, 3),
        "gpu_ms_p50": round(1e3 * median, 3),
        "gpu_roofline_share": round(floor_s / median, 3),
        "host_share": round(1 - median / itl_s, 3),
    }


def _adapter_bytes(engine: Engine, load: Workload) -> float:
    """Of one that is in use; 0 in mode base."""
    sizes = engine.adapters.packed_bytes()
    return statistics.mean(sizes) if sizes and load.mode != "base" else 0.0


def _step_bytes(engine: Engine, load: Workload) -> float:
    """Bytes one decode step must read: weights, each adapter in use once, and the keys and values."""
    layout = engine.layout
    context = load.prompt_tokens + load.output_tokens / 2
    kv = load.batch * context * layout.page_bytes / layout.block_size
    used = {"base": 0, "same": 1, "distinct": load.batch}[load.mode]
    return engine.decoder.weight_bytes + kv + used * _adapter_bytes(engine, load)


def _step_products(engine: Engine, load: Workload) -> float:
    """Multiply-adds of one decode step: a row's with the weights, its context and its adapter."""
    weights = sum(linear.k * sum(linear.splits) for linear in engine.decoder.linears)
    c = engine.decoder.config
    context = load.prompt_tokens + load.output_tokens / 2
    attention = 2 * c.num_layers * c.num_heads * c.head_dim * context
    adapter = _adapter_bytes(engine, load) / engine.kernels.dtype.itemsize
    return load.batch * (weights + attention + adapter)
