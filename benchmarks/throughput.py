"""How well the planner's loads of requests are kept by simulated replicas, and how well loads of mixtures add up.

python benchmarks/throughput.py --data ../shared/data [--count 300] [--out docs/results/planner-throughput.json]

Replicas are drawn at random (steps of 5 to 100 ms, 8 to 256 sequences, 256 to 8,192 rows, memory for 16 k to 630 k
tokens), and so are sizes (10 to 8,000 prompt, 2 to 1,000 output tokens). A queue grows if the requests in a replica
increase by more than 3 % of those that come.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stoa.bench.machine import machine_facts
from stoa.fleet.policies.facts import Decision, Launch, Slo, Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.planner.accelerators import find
from stoa.planner.profiles import find_model, loads_of, read_table, roofline
from stoa.planner.profiles.service import AGAIN, FREE_OUTPUT, FREE_PROMPT, SHORT_FROM
from stoa.simulator import Options, Requests, Result, Zone, load_requests, simulate

NEVER = 1e9  # a target that everything keeps
GROWS = 0.03
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Keep:
    """A policy: so many replicas."""

    count: int

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        missing = self.count - len(seen.replicas)
        return Decision([Launch(seen.offers[0].offer, missing)] if missing > 0 else []), None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine_facts(), "command": "python benchmarks/throughput.py"}
    report["tables"] = tables(args.data / "profiles")
    report["one size"] = singles(args.count)
    for kind in ("no targets", "same tpot", "same ttft", "different tpot", "different ttft"):
        report[f"mixtures, {kind}"] = mixtures(args.count, kind)
    report["trace"] = trace(args.data / "traces" / "azure2023_conv.csv.gz")
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def tables(folder: Path) -> dict[str, float]:
    """Mean error of the fit to each table, over steps of at most 2,048 prompt rows."""
    found = {}
    for hardware in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
        for model, count in (("llama2-70b", 2), ("llama2-70b", 4), ("llama2-70b", 8), ("bloom-176b", 8)):
            chosen = {"model": model, "hardware": hardware, "tensor_parallel": count}
            fitted = read_table(folder / "splitwise_perf_model.csv.gz", chosen)
            found[fitted.profile.name] = round(fitted.error, 3)
    for path in sorted((folder / "helix").glob("*_prompt_bs2time.csv")):
        fitted = read_table(path, {"layers": 80 if "70b" in path.name else 60})
        found[fitted.profile.name] = round(fitted.error, 3)
    return found


# -- one size, and mixtures of sizes


def singles(count: int) -> dict[str, Any]:
    rng, right, off = random.Random(11), {"0.95 is stable": 0, "1.08 grows": 0, "1.2 grows": 0}, 0
    for _ in range(count):
        profile, prompt, output = drawn(rng), size(rng, 10, 8000), size(rng, 2, 1000)
        load_s = loads_of([profile], prompt, output, NEVER, NEVER)[0].item()
        if load_s == np.inf:
            off += 1
            continue
        alone = mixed_load(profile, *(np.array([v]) for v in (1 / load_s, prompt, output, NEVER, NEVER)))
        assert abs(alone - 1) < 1e-6, "the two reckonings differ"
        for at, name in zip((0.95, 1.08, 1.2), right, strict=True):
            growth, _ = growing(profile, at / load_s, np.full(12_000, prompt), np.full(12_000, output))
            right[name] += (growth > GROWS) == (at > 1)
    return {"replicas": count - off, **right}


def mixtures(count: int, kind: str) -> dict[str, Any]:
    """Two, four or eight sizes in random shares whose loads sum to 1. `fullness`: how full they make the replica by
    `mixed_load`; above 1 adding loads promised too much. Without targets also by simulation."""
    rng, shares = random.Random(12), np.random.default_rng(12)
    fullness, stable, grows = [], 0, 0
    while len(fullness) < count:
        profile, many = drawn(rng), rng.choice([2, 4, 8])
        prompt = np.array([size(rng, 10, 8000) for _ in range(many)])
        output = np.array([size(rng, 2, 1000) for _ in range(many)])
        ttft, tpot = targets(rng, kind, profile, prompt)
        loads = loads_of([profile], prompt, output, ttft, tpot)[0][0]
        if not np.isfinite(loads).all() or (prompt + output > profile.kv_tokens / 2).any():
            continue
        rates = shares.dirichlet(np.ones(many)) / loads
        fullness.append(mixed_load(profile, rates, prompt, output, ttft, tpot))
        if kind == "no targets":
            which = shares.choice(many, 12_000, p=rates / rates.sum())
            growth = [
                growing(profile, at * rates.sum(), prompt[which], output[which])[0] for at in (0.95, 1.2)
            ]
            stable, grows = stable + (growth[0] <= GROWS), grows + (growth[1] > GROWS)
    found = {"mixtures": count, "fullness": quantiles(fullness)}
    return found | ({"0.95 is stable": stable, "1.2 grows": grows} if kind == "no targets" else {})


def mixed_load(
    p: Profile,
    rates: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    ttft_s: np.ndarray,
    tpot_s: np.ndarray,
) -> float:
    """How full a replica is that serves all of these sizes [C] at these rates (requests a second) together: 1 is as full as
    the strictest of their targets allows. As `profiles.service` has it, which sees one size at a time."""
    share, decoded, context = rates / rates.sum(), output - 1.0, prompt + output / 2

    def at(r: float) -> SimpleNamespace:
        begun = r * share
        decoding, rows = begun @ decoded, begun @ prompt
        base_s = p.fixed_s + p.decode_row_s * decoding + p.context_token_s * (begun @ (decoded * context))
        room = max(p.max_batch_tokens - decoding, 1e-9)
        steps = np.maximum(1, prompt / room) + rows / room * np.minimum(1, prompt / room)
        return SimpleNamespace(
            base_s=base_s, step_s=base_s + p.prompt_row_s * rows, room=room, decoding=decoding, rows=rows,
            sequences=decoding + begun @ steps, memory=begun @ (decoded * context + steps * prompt),
        )  # fmt: skip

    def bears(r: float) -> bool:
        s = at(r)
        return s.decoding + s.rows <= p.max_batch_tokens and s.sequences <= p.max_num_seqs

    def timely(r: float) -> bool:
        s = at(r)
        waits_s = -np.expm1(-s.sequences) * s.step_s / 2
        first_s = waits_s + np.ceil(prompt / s.room) * s.base_s + p.prompt_row_s * (prompt + s.rows)
        paced = (s.step_s - p.fixed_s) * (1 - 1 / p.max_num_seqs) <= spare_s[decoded > 0]
        return bool(paced.all() and (first_s <= ttft_s).all())

    spare_s = tpot_s - (p.fixed_s + p.decode_row_s + p.context_token_s * context)
    usable = max(p.kv_tokens - share @ (FREE_PROMPT * prompt + FREE_OUTPUT * output), 1.0)
    most = greatest(bears, min(p.max_num_seqs, p.max_batch_tokens / (share @ prompt)))
    holds, keeps = greatest(lambda r: at(r).memory <= usable, most), greatest(timely, most)
    short = np.clip((at(most).memory / usable - SHORT_FROM) / (1 - SHORT_FROM), 0, 1)
    again_s = short * AGAIN * p.prompt_row_s * (share @ output)
    full = min(holds / (at(holds).step_s + holds * again_s), keeps / at(keeps).step_s)
    return float(rates.sum() / full)


def greatest(fits: Callable[[float], bool], most: float) -> float:
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def targets(
    rng: random.Random, kind: str, profile: Profile, prompt: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(ttft_s, tpot_s) of sizes: multiples of what a request alone takes."""
    never = np.full(len(prompt), NEVER)
    alone_s = profile.fixed_s * np.ceil(prompt / profile.max_batch_tokens) + profile.prompt_row_s * prompt
    if kind == "same tpot":
        return never, np.full(len(prompt), profile.fixed_s * rng.uniform(1.3, 4))
    if kind == "different tpot":
        return never, profile.fixed_s * np.array([rng.uniform(1.3, 6) for _ in prompt])
    if kind == "same ttft":
        return np.full(len(prompt), alone_s.max() * rng.uniform(1.5, 4)), never
    if kind == "different ttft":
        return alone_s * np.array([rng.uniform(1.5, 6) for _ in prompt]), never
    return never, never


def drawn(rng: random.Random) -> Profile:
    fixed_s = 10 ** rng.uniform(-2.3, -1)
    row_s = fixed_s * 10 ** rng.uniform(-3.2, -1.7)
    return Profile(
        name="drawn", fixed_s=fixed_s, prompt_row_s=row_s, decode_row_s=row_s * rng.uniform(0.3, 2),
        context_token_s=fixed_s * 10 ** rng.uniform(-7.3, -5), max_num_seqs=rng.choice([8, 32, 64, 128, 256]),
        max_batch_tokens=rng.choice([256, 512, 1024, 2048, 8192]), kv_tokens=int(10 ** rng.uniform(4.2, 5.8)),
    )  # fmt: skip


def size(rng: random.Random, least: int, most: int) -> int:
    return int(least * (most / least) ** rng.random())


def growing(profile: Profile, rate: float, prompt: np.ndarray, output: np.ndarray) -> tuple[float, Result]:
    """Growth of the requests in a replica over the second half of a Poisson stream, as a share of those that come."""
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1 / rate, len(prompt)))
    result = played(profile, Requests(arrival_s, prompt.astype(np.int32), output.astype(np.int32)), NEVER)
    assert result.end_s is not None
    ends_s = np.sort(result.end_s)

    def inside(start: float, stop: float) -> float:
        at_s = np.linspace(start, stop, 20) * arrival_s[-1]
        return float(np.mean(np.searchsorted(arrival_s, at_s) - np.searchsorted(ends_s, at_s)))

    return (inside(0.9, 1.0) - inside(0.4, 0.5)) / (len(prompt) / 2), result


def played(profile: Profile, requests: Requests, ttft_s: float, replicas: int = 1) -> Result:
    last_s = float(requests.arrival_s[-1])
    return simulate(
        [requests], [Zone("here", 1.0, startup_s=0.0)], profile, Keep(replicas), slo=Slo(ttft_s=ttft_s),
        tick_s=max(1.0, last_s / 400),
        options=Options(record=len(requests), order="arrival", runout_s=5 * last_s),
    )  # fmt: skip


# -- a real mixture


def trace(path: Path) -> list[dict[str, Any]]:
    """Requests of a trace, in Poisson streams at rates by which their loads fill replicas in part."""
    real = load_requests(path, sort=True)
    rows = []
    for model, accelerator, count, ttft_s, tpot_s in (
        ("llama-3-8b", "H100", 1, 1.0, 0.05),
        ("llama-3-8b", "L4", 1, 2.0, 0.15),
        ("llama-3-70b", "A100-80GB", 4, 2.0, 0.15),
    ):
        profile = roofline(find_model(model), find(accelerator), count)
        loads = loads_of([profile], real.prompt_tokens, real.output_tokens, ttft_s, tpot_s)[0][0]
        fits = np.isfinite(loads)
        mean_s = float(loads[fits].mean())
        for replicas in (1, 4, 16):
            for full in (0.6, 0.7, 0.8, 0.9, 0.95):
                rng = np.random.default_rng(5)
                which = rng.choice(np.flatnonzero(fits), 5000 * replicas)
                arrival_s = np.cumsum(rng.exponential(mean_s / (full * replicas), len(which)))
                requests = Requests(arrival_s, real.prompt_tokens[which], real.output_tokens[which])
                result = played(profile, requests, ttft_s, replicas)
                rows.append(
                    {
                        "replica": profile.name, "ttft_s": ttft_s, "tpot_s": tpot_s, "never in time": int((~fits).sum()),
                        "requests a second of a full replica": round(1 / mean_s, 2), "replicas": replicas, "full": full,
                        "attainment": round(result.attainment, 4), "tpot_mean_s": round(result.tpot.mean_s, 4),
                    }
                )  # fmt: skip
    return rows


def quantiles(values: list[float]) -> dict[str, float]:
    return {
        f"{q:g}": round(float(v), 3) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    }


if __name__ == "__main__":
    main()
