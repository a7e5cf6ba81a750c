"""The same trace on the live fleet of this machine and on the simulator, with the same policies.

python benchmarks/live/simulated.py ../shared/data/traces/azure2023_conv.csv.gz --model 134m --minutes 6 \
    --out docs/results/simulated-live.json

Live: `stoa serve --min-replicas 1 --max-replicas 2`, one thread a replica, asked through HTTP. Simulated: the profile that
`stoa bench profile` measures here just before, the autoscaler and the router that the server runs, and the arrivals and
lengths that were sent. Cost is replica-seconds from launch to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from gateway import serving
from traffic import Ask, read_trace

from stoa.bench.drive import percentile
from stoa.bench.folders import model_folder
from stoa.bench.machine import machine_facts
from stoa.config import load_settings
from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.facts import Bounds, Slo
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Options, Requests, Zone, simulate

_HANDOVER_S = 2.0  # a report of the gateway and a look of the controller, each once a second
_STATES = re.compile(r'^stoa:replicas\{.*state="(\w+)".*\} (\S+)$', re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--model", default="134m")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--shrink", type=int, default=4)
    parser.add_argument("--ttft-s", type=float, default=1.0)
    parser.add_argument("--profile", type=Path, help="measured before, with one thread; default: now")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cache = load_settings().home_path / "cache"
    folder = model_folder(args.model, cache)
    profile, measured = _profile(args, cache)
    asks = read_trace(args.trace, args.requests, args.minutes * 60, shrink=args.shrink, most=400)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "profile.json"
        path.write_bytes(msgspec.json.encode(profile))
        options = [
            "--model", str(folder), "--min-replicas", "1", "--max-replicas", "2", "--threads", "1", "--profile", str(path),
            "--slo-ttft-ms", str(args.ttft_s * 1000), "--pool-gib", "1", "--fairness", "off",
        ]  # fmt: skip
        with serving(options, replicas=1) as url:
            live = asyncio.run(_live(url, asks))
    report = {
        "machine": machine_facts(),
        "command": "python benchmarks/live/simulated.py " + " ".join(sys.argv[1:]),
        "trace": args.trace.name,
        "profile": measured,
        "live": live,
        "simulated": _simulated(asks, profile, args),
    }
    report["apart"] = {
        name: round(report["simulated"][name] / live[name] - 1, 4)
        for name in ("ttft_mean_s", "ttft_p99_s", "replica_s")
    }
    print(json.dumps({k: report[k] for k in ("live", "simulated", "apart")}, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report) + "\n")


def _profile(args: argparse.Namespace, cache: Path) -> tuple[Profile, dict[str, Any]]:
    if args.profile:
        measured = json.loads(args.profile.read_text())
    else:
        from stoa.bench.profile import run

        measured = run(args.model, cache=cache, threads=1, pool_gib=1.0)
    return msgspec.convert(measured, Profile), measured


async def _live(url: str, asks: list[Ask]) -> dict[str, float]:
    first: list[float] = []
    by_state: Counter[str] = Counter()  # replica-seconds
    started = time.perf_counter()
    over = asyncio.Event()

    async def watch() -> None:
        """Integrates the number of replicas in each state."""
        last = time.perf_counter()
        while not over.is_set():
            text = (await client.get(f"{url}/metrics")).text
            now = time.perf_counter()
            for state, count in _STATES.findall(text):
                by_state[state] += float(count) * (now - last)
            last = now
            await asyncio.sleep(0.2)

    async def one(ask: Ask) -> None:
        await asyncio.sleep(started + ask.at_s - time.perf_counter())
        tokens = [3 + (ask.number * 7919 + i * 104729) % 4000 for i in range(ask.prompt_tokens)]
        body = {
            "model": model, "prompt": tokens, "max_tokens": ask.output_tokens, "temperature": 1.0, "seed": ask.number,
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        sent = time.perf_counter()
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            heard = False
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and not heard:
                    heard = True
                    first.append(time.perf_counter() - sent)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        model = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(ask) for ask in asks))
        await asyncio.sleep(max(0.0, started + asks[-1].at_s - time.perf_counter()))
        over.set()
        await watching
    return {
        "requests": len(first),
        "ttft_mean_s": round(statistics.fmean(first), 4),
        "ttft_p50_s": round(statistics.median(first), 4),
        "ttft_p99_s": round(percentile(first, 0.99), 4),
        "replica_s": round(by_state.total(), 1),
        **{f"{state}_s": round(seconds, 1) for state, seconds in by_state.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _simulated(asks: list[Ask], profile: Profile, args: argparse.Namespace) -> dict[str, float]:
    """One replica is ready when the first request comes, as it is live."""
    lead_s = 60.0
    requests = Requests(
        np.array([lead_s + ask.at_s for ask in asks]),
        np.array([ask.prompt_tokens for ask in asks], np.int32),
        np.array([ask.output_tokens for ask in asks], np.int32),
    )
    result = simulate(
        [requests],
        [Zone("local", on_demand_hourly=3600.0, startup_s=profile.load_s, on_demand_capacity=2)],
        profile,
        Elastic(),
        slo=Slo(args.ttft_s),
        bounds=Bounds(1, 2, 300.0),
        tick_s=1.0,
        until_s=lead_s + asks[-1].at_s,
        options=Options(measure_from_s=lead_s, handover_s=_HANDOVER_S),
    )
    line = result.timeline
    return {
        "requests": len(asks),
        "ttft_mean_s": round(result.ttft_mean_s, 4),
        "ttft_p50_s": round(result.ttft_p50_s, 4),
        "ttft_p99_s": round(result.ttft_p99_s, 4),
        "replica_s": round(3600 * sum(result.machine_hours.values()), 1),
        **{
            f"{state}_s": round(
                sum(n for t, n in zip(line["t_s"], line[column], strict=True) if t > lead_s), 1
            )
            for state, column in (
                ("starting", "starting"),
                ("ready", "ready_on_demand"),
                ("draining", "draining"),
            )
        },
        "launches": result.launches,
    }


if __name__ == "__main__":
    main()
