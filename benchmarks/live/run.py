"""A real trace through the official client, while the replicas of a Ray cluster are killed, cut off and taken away.

python benchmarks/live/run.py ../shared/data/traces/azure2023_conv.csv.gz --requests 1200 --minutes 6 --every 5 \
    --out docs/results/elastic-live.json

Starts a cluster of four logical nodes (a head and three zones), a gateway on it, and sends the trace twice: first
without faults, as fast as it goes, for what each answer should be; then by the clock, with a fault every few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from draw import draw
from gateway import get, serving
from nodes import FAULTS, Nodes
from traffic import Answer, quiet_answers, read_trace, replay

from stoa.bench.drive import percentile
from stoa.bench.machine import machine_facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults")
    parser.add_argument("--replicas", type=int, default=3, help="at least so many")
    parser.add_argument("--shrink", type=int, default=3, help="lengths of the trace are divided by this")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    asks = read_trace(args.trace, args.requests, args.minutes * 60, shrink=args.shrink, most=300)
    nodes = Nodes()
    try:
        options = [
            "--cluster", nodes.address, "--min-replicas", str(args.replicas), "--max-replicas", str(args.replicas + 1),
            "--replica-cpus", "1", "--threads", "1", "--pool-gib", "0.1",
        ]  # fmt: skip
        with serving(options, replicas=args.replicas) as url:
            expected = asyncio.run(quiet_answers(url, asks))
            assert not any(answer.error for answer in expected), next(a.error for a in expected if a.error)
            report = _disturbed(url, nodes, asks, expected, args)
    finally:
        nodes.close()
    _print(report)
    if args.out:
        args.out.write_text(json.dumps(report) + "\n")
        args.out.with_suffix(".svg").write_text(draw(report))


def _disturbed(url: str, nodes: Nodes, asks: list, expected: list[Answer], args: argparse.Namespace) -> dict:
    """Traffic has a thread of its own: Ray starts nodes from the main one only."""
    started = time.perf_counter()
    timeline: list[dict[str, float]] = []
    faults: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as thread:
        traffic = thread.submit(asyncio.run, _watched(url, started, timeline, asks))
        _break(nodes, args, started, faults, traffic)
        answers = traffic.result()
    rows = [_row(answer, should) for answer, should in zip(answers, expected, strict=True)]
    return {
        "machine": machine_facts(),
        "command": "python benchmarks/live/run.py " + " ".join(sys.argv[1:]),
        "trace": args.trace.name,
        "summary": _summary(rows, faults),
        "faults": faults,
        "timeline": timeline,
        "requests": rows,
    }


def _row(answer: Answer, should: Answer) -> dict[str, Any]:
    return {
        "at_s": round(answer.sent_s, 3),
        "ttft_s": round(answer.first_s, 4),
        "pause_s": round(answer.longest_pause_s, 4),
        "ended_s": round(answer.ended_s, 3),
        "error": answer.error,
        "same": answer.text == should.text and answer.tokens == should.tokens,
    }


def _summary(rows: list[dict[str, Any]], faults: list[dict[str, Any]]) -> dict[str, Any]:
    ttft = [row["ttft_s"] for row in rows if not row["error"]]
    kinds = {
        kind: sum(f["kind"] == kind for f in faults) for kind in dict.fromkeys(f["kind"] for f in faults)
    }
    return {
        "requests": len(rows),
        "lost": sum(bool(row["error"]) for row in rows),
        "different": sum(not row["same"] for row in rows if not row["error"]),
        "faults": kinds,
        "ttft_mean_s": round(sum(ttft) / len(ttft), 4),
        "ttft_p99_s": round(percentile(ttft, 0.99), 4),
        "longest_pause_s": round(max(row["pause_s"] for row in rows), 3),
        "errors": sorted({row["error"] for row in rows if row["error"]})[:5],
    }


async def _watched(url: str, started: float, timeline: list[dict[str, float]], asks: list) -> list[Answer]:
    watching = asyncio.create_task(_watch(url, started, timeline))
    try:
        return await replay(url, asks)
    finally:
        watching.cancel()


def _break(
    nodes: Nodes, args: argparse.Namespace, started: float, faults: list[dict[str, Any]], traffic: Future
) -> None:
    """One fault after the other, in turns, until there is no more traffic."""
    rng = random.Random(args.seed)
    for kind in itertools.cycle(args.faults.split(",")):
        wait({traffic}, timeout=args.every)
        if traffic.done():
            return
        nodes.mend()
        at_s = time.perf_counter() - started
        if where := getattr(nodes, kind)(rng):
            faults.append({"at_s": round(at_s, 2), "kind": kind, "where": where})
            print(f"{at_s:7.1f} s  {kind} {where}", flush=True)


async def _watch(url: str, started: float, timeline: list[dict[str, float]]) -> None:
    while True:
        with contextlib.suppress(OSError):
            text = await asyncio.to_thread(get, f"{url}/metrics")
            point = {"t_s": round(time.perf_counter() - started, 2)}
            for line in text.splitlines():
                if line.startswith(("stoa:replicas{", "stoa:requests_held{")):
                    name = line.split('state="')[1].split('"')[0] if "state=" in line else "held"
                    point[name] = float(line.rsplit(" ", 1)[1])
            timeline.append(point)
        await asyncio.sleep(0.5)


def _print(report: dict[str, Any]) -> None:
    for name, value in report["summary"].items():
        print(f"{name:16s} {value}")


if __name__ == "__main__":
    main()
