"""`stoa bench profile`: what one replica of this machine can do, in the numbers that policies and the simulator use.

Requests of several lengths run, few and many at once, with new prompts among those that decode. Of every step the rows
and contexts are known; least squares of relative errors over all steps give seconds per step, per prompt row, per
decoding sequence and per token of their context, none of them below zero.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.profiles.steps import Step, errors, fit, typical

_WARM_STEPS = 8  # at the start of each group, left out
_RANK = 16
_ADAPTERS = 4
_CHILD = "import sys; from stoa.bench.profile import first_token; first_token(sys.argv[1])"


def run(
    model: str,
    *,
    cache: Path,
    max_num_seqs: int = 64,
    max_batch_tokens: int = 512,
    repeats: int = 3,
    pool_gib: float = 0.0,
    dtype: str = "auto",
    quantize: str = "none",
    threads: int = 0,
) -> dict[str, Any]:
    """The profile's fields, with `machine` and `fit` beside them: `Profile` reads it back."""
    if min(max_num_seqs, max_batch_tokens, repeats) < 1 or pool_gib < 0:
        raise ConfigError(
            "max_num_seqs, max_batch_tokens and repeats must be 1 or above, pool_gib 0 or above"
        )
    folder = model_folder(model, cache)
    config = _config(
        {
            "model": str(folder), "max_num_seqs": max_num_seqs, "max_batch_tokens": max_batch_tokens, "dtype": dtype,
            "quantize": quantize, "threads": threads, "pool_bytes": int(pool_gib * (1 << 30)),
            "prefix_caching": False, "speculation": False, "fairness": "off",
        }
    )  # fmt: skip
    engine = Engine(config)
    try:
        steps = list(measure(engine, repeats))
        adapter_s = _adapter_s(engine, adapter_refs(folder, _ADAPTERS, _RANK, cache))
        kv_tokens, kernels = engine.pool.num_pages * config.block_size, engine.kernels_name
    finally:
        engine.close()
    costs = fit(steps)
    profile = Profile(
        name=f"{model} {dtype if quantize == 'none' else quantize}, {kernels}",
        **costs, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, kv_tokens=kv_tokens,
        load_s=_load_s(config), adapter_load_s=adapter_s,
    )  # fmt: skip
    facts: dict[str, Any] = msgspec.to_builtins(profile)
    return facts | {"machine": machine_facts(), "fit": quality(profile, steps)}


def _config(settings: dict[str, Any]) -> EngineConfig:
    try:
        return msgspec.convert(settings, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None


# -- steps


def measure(engine: Engine, repeats: int) -> Iterator[Step]:
    """Groups of requests of different sizes and lengths, each `repeats` times."""
    rng = np.random.default_rng(0)
    most = engine.config.max_num_seqs
    counts = sorted({max(1, most // 2**k) for k in range(7)})
    longest = min(engine.max_model_len, engine.pool.num_pages * engine.config.block_size // 2)
    for _ in range(repeats):
        for count in counts:
            for share in (0.02, 0.2, 0.6):
                prompt = max(1, min(int(share * longest), 2048))
                if count * (prompt + 64) <= engine.pool.num_pages * engine.config.block_size:
                    yield from _group(engine, rng, count, prompt)


def _group(engine: Engine, rng: np.random.Generator, count: int, prompt: int) -> Iterator[Step]:
    """`count` requests decode; meanwhile prompts of several lengths join them, one after the other."""
    output = min(48, engine.max_model_len - prompt)
    joining = [max(1, prompt // k) for k in (1, 3, 9)] if count > 1 else []
    for i in range(max(1, count - len(joining))):
        _add(engine, rng, f"first {i}", prompt, output)
    taken = 0
    while engine.has_requests:
        if joining and taken > _WARM_STEPS and taken % 5 == 0:
            _add(engine, rng, f"joining {taken}", joining.pop(), 4)
        step = observed_step(engine)
        taken += 1
        if taken > _WARM_STEPS or step.prompt_rows:
            yield step


def _add(
    engine: Engine,
    rng: np.random.Generator,
    name: str,
    prompt: int,
    output: int,
    adapter: AdapterRef | None = None,
) -> None:
    ids = rng.integers(3, engine.model.vocab_size, prompt).tolist()
    params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
    engine.add_request(GenerationRequest(id=name, prompt_token_ids=ids, params=params, adapter=adapter))


def observed_step(engine: Engine) -> Step:
    """Runs one step and says what was in it."""
    scheduler = engine.scheduler
    before = [(s, s.num_computed, s.todo, s.num_output > 0) for s in (*scheduler.running, *scheduler.waiting)]
    started = time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - started
    prompt_rows = decode_rows = context = 0
    for seq, computed, todo, decodes in before:
        rows = todo if seq.done else max(0, seq.num_computed - computed)  # 0: it has given way
        if decodes and rows == 1:
            decode_rows += 1
            context += computed + 1
        else:
            prompt_rows += rows
    return Step(prompt_rows, decode_rows, context, seconds)


# -- the fit


def quality(profile: Profile, steps: list[Step]) -> dict[str, float]:
    """How far the profile is from the medians of like steps, and from all steps together."""
    total_s = sum(s.seconds for s in steps)
    foretold_s = sum(profile.step_s(s.prompt_rows, s.decode_rows, s.context_tokens) for s in steps)
    steps = typical(steps)
    off = np.abs(errors(profile, steps))
    return {
        "steps": len(steps),
        "median_error": round(float(np.median(off)), 4),
        "p90_error": round(float(np.quantile(off, 0.9)), 4),
        "total_error": round(foretold_s / total_s - 1, 4),
    }


# -- loading


def _adapter_s(engine: Engine, refs: list[AdapterRef]) -> float:
    """Median of what the first request with an adapter waits longer than the second."""
    rng = np.random.default_rng(1)
    waits = []
    for ref in refs:
        cold, warm = (_first_token_s(engine, rng, f"{ref.id} {k}", ref) for k in ("cold", "warm"))
        waits.append(max(0.0, cold - warm))
    return float(np.median(waits))


def _first_token_s(engine: Engine, rng: np.random.Generator, name: str, ref: AdapterRef) -> float:
    started = time.perf_counter()
    _add(engine, rng, name, 8, 1, ref)
    while engine.has_requests:
        engine.step()
        if engine.idle:
            engine.wakeup.wait(0.05)
            engine.wakeup.clear()
    return time.perf_counter() - started


def _load_s(config: EngineConfig) -> float:
    """From the start of a process to its first token; the least of three."""
    text = msgspec.json.encode(config).decode()
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", _CHILD, text], check=True, stdout=subprocess.DEVNULL)
        least = min(least, time.perf_counter() - started)
    return least


def first_token(config: str) -> None:
    """What the process of `_load_s` does."""
    engine = Engine(msgspec.json.decode(config, type=EngineConfig))
    _add(engine, np.random.default_rng(0), "first", 1, 1)
    while engine.has_requests:
        engine.step()
    engine.close()
