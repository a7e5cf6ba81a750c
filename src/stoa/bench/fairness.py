"""`stoa bench fairness`: what projects do to each other.

Flood: one project asks at a steady rate, another sends ten times as much; the steady one's latency and throughput
beside what it has alone. Gap: two projects always have requests waiting, one with long prompts and large adapters, one
with short ones and none; what they were served, in seconds of the engine, should not drift apart.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stoa.bench.drive import drive, percentile
from stoa.bench.folders import adapter_refs, model_folder
from stoa.bench.machine import machine_facts
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.fairness import MEMORY_WEIGHT
from stoa.engine.usage import Interval

FAIRNESS = ("off", "tokens", "cost")
_LOOK_S = 0.25


@dataclass(frozen=True)
class Traffic:
    """Requests of one project, at random times."""

    project: str
    per_s: float
    prompt_tokens: int = 64
    output_tokens: int = 32


@dataclass
class Served:
    """Seconds of the engine that projects have had, as they were seen every quarter of a second."""

    total: Counter[str] = field(default_factory=Counter)
    gaps_s: list[float] = field(default_factory=list)

    def look(self, engine: Engine) -> None:
        for report in engine.accounts.reports(final=True):
            if isinstance(report, Interval):
                for line in report.lines:
                    held = (line.kv_byte_ms + line.adapter_byte_ms) / report.pool_bytes / 1000
                    self.total[line.account] += line.compute_ns / 1e9 + MEMORY_WEIGHT * held  # type: ignore[assignment]


def run(
    model: str,
    *,
    cache: Path,
    seconds: float = 60.0,
    per_s: float = 2.0,
    times: float = 10.0,
    backlog: int = 200,
    rank: int = 64,
) -> dict[str, Any]:
    """`per_s`: requests of the steady project; the flood sends `times` as many. `backlog`: requests of each of the
    two projects whose service is compared."""
    folder = model_folder(model, cache)
    steady = Traffic("steady", per_s)
    flood = Traffic("flood", per_s * times)
    rows = [_flood(folder, "cost", seconds, [steady], "alone")]
    rows += [_flood(folder, fairness, seconds, [steady, flood], fairness) for fairness in FAIRNESS]
    refs = adapter_refs(folder, 8, rank, cache)
    return {
        "machine": machine_facts(),
        "model": {"name": model},
        "workload": {"seconds": seconds, "steady_per_s": per_s, "flood_per_s": per_s * times, "prompt_tokens": 64,
                     "output_tokens": 32, "backlog": backlog, "rank": rank},
        "rows": rows,
        "gap": [_gap(folder, fairness, backlog, refs) for fairness in ("tokens", "cost")],
    }  # fmt: skip


def _engine(folder: Path, fairness: str) -> Engine:
    return Engine(
        EngineConfig(
            model=str(folder),
            max_num_seqs=32,
            max_model_len=1024,
            pool_bytes=2 << 30,
            prefix_caching=False,
            speculation=False,
            fairness=fairness,  # type: ignore[arg-type]
        )
    )


def _flood(folder: Path, fairness: str, seconds: float, traffic: list[Traffic], name: str) -> dict[str, Any]:
    engine = _engine(folder, fairness)
    rng = np.random.default_rng(0)
    try:
        drive(engine, _arrivals(engine, [Traffic("warm", 4.0)], 3.0, rng))
        outcome = drive(engine, _arrivals(engine, traffic, seconds, rng), stop_s=seconds)
    finally:
        engine.close()
    row: dict[str, Any] = {"fairness": name}
    for each in traffic:
        mine = [t for i, t in outcome.by_request.items() if i.startswith(each.project)]
        first = [t.first_s for t in mine if t.tokens]
        row |= {
            f"{each.project}_ttft_ms_p50": round(1e3 * statistics.median(first), 1),
            f"{each.project}_ttft_ms_p99": round(1e3 * percentile(first, 0.99), 1),
            f"{each.project}_tok_s": round(sum(t.tokens for t in mine) / seconds, 1),
        }
    return row


def _arrivals(
    engine: Engine, traffic: list[Traffic], seconds: float, rng: np.random.Generator
) -> Iterator[tuple[float, GenerationRequest]]:
    """Poisson, all projects together, by time."""
    found = []
    for each in traffic:
        times = np.cumsum(rng.exponential(1 / each.per_s, int(2 * each.per_s * seconds) + 20))
        for i, at in enumerate(times[times < seconds].tolist()):
            found.append((at, _request(engine, each, i, rng)))
    return iter(sorted(found, key=lambda pair: pair[0]))


def _request(
    engine: Engine, traffic: Traffic, i: int, rng: np.random.Generator, adapter: AdapterRef | None = None
) -> GenerationRequest:
    return GenerationRequest(
        id=f"{traffic.project}-{i}",
        prompt_token_ids=rng.integers(3, engine.model.vocab_size, traffic.prompt_tokens).tolist(),
        params=SamplingParams(max_tokens=traffic.output_tokens, temperature=0, ignore_eos=True),
        project=traffic.project,
        account=traffic.project,
        adapter=adapter,
    )


def _gap(folder: Path, fairness: str, backlog: int, refs: list[AdapterRef]) -> dict[str, Any]:
    engine = _engine(folder, fairness)
    rng = np.random.default_rng(0)
    heavy, light = Traffic("heavy", 0, 384, 16), Traffic("light", 0, 48, 48)
    served, ended, tokens = Served(), Counter[str](), 0
    try:
        for i in range(backlog):
            engine.add_request(_request(engine, heavy, i, rng, refs[i % len(refs)]))
            for j in range(4):
                engine.add_request(_request(engine, light, 4 * i + j, rng))
        started = looked = time.perf_counter()
        while {s.project for s in engine.scheduler.waiting} == {"heavy", "light"}:
            for event in engine.step():
                tokens += len(event.token_ids)
                ended[event.request_id.partition("-")[0]] += event.finish_reason is not None
            if engine.idle:
                engine.wakeup.wait(0.01)
                engine.wakeup.clear()
            if time.perf_counter() - looked > _LOOK_S:
                looked = time.perf_counter()
                served.look(engine)
                served.gaps_s.append(abs(served.total["heavy"] - served.total["light"]))
        wall_s = time.perf_counter() - started
    finally:
        engine.close()
    prompts = ended["heavy"] * heavy.prompt_tokens + ended["light"] * light.prompt_tokens
    return {
        "fairness": fairness,
        "wall_s": round(wall_s, 1),
        "largest_gap_s": round(max(served.gaps_s), 3),
        "gap_at_end_s": round(served.gaps_s[-1], 3),
        "heavy_s": round(served.total["heavy"], 2),
        "light_s": round(served.total["light"], 2),
        "tok_s": round((tokens + prompts) / wall_s, 1),
    }
