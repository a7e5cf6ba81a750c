"""Stoa's gateway beside the LiteLLM proxy: requests a second on one core, in front of an engine that computes nothing.

    benchmarks/setup_peers.sh PEERS
    python benchmarks/gateway.py --peers PEERS --out docs/results/gateway.json

Stoa with a key, limits per key and project, a budget, metering and its ledger, in SQLite. LiteLLM keeps keys and budgets
of customers in PostgreSQL through Prisma, whose engine is no part of the package; here it has its master key, a limit
of its deployment and a budget of its provider, in memory, which is less to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stoa.bench.gateway import free_port, make_requests, row, run, token_ms, wait_ready
from stoa.bench.load import run_load

KEY = f"sk-{secrets.token_hex(32)}"
CONFIG = """
model_list:
  - model_name: stoa-demo
    litellm_params:
      model: openai/fake
      api_base: http://127.0.0.1:{port}/v1
      api_key: none
      rpm: 100000000
      tpm: 100000000000
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000002
general_settings:
  master_key: {key}
router_settings:
  provider_budget_config:
    openai:
      budget_limit: 1000000
      time_period: 1d
  optional_pre_call_checks: [enforce_model_rate_limits]
litellm_settings:
  telemetry: false
  num_retries: 0
"""
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "fake",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "x" * 16}, "finish_reason": "length"}
    ],
    "usage": {"prompt_tokens": 60, "completion_tokens": 16, "total_tokens": 76},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--delay-ms", type=float, default=500.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--upstream", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        asyncio.run(upstream(int(args.upstream[0]), float(args.upstream[1])))
        return
    load = {"connections": args.connections, "seconds": args.seconds, "delay_ms": args.delay_ms}
    report: dict[str, Any] = run(**load)
    report["litellm"] = {
        name: litellm(args.peers, delay, args.connections, args.seconds)
        for name, delay in (("added", args.delay_ms), ("most", 0.0))
    }
    ratio = report["most"]["requests_per_s"] / report["litellm"]["most"]["requests_per_s"]
    report["ratio"] = round(ratio, 2)
    report["command"] = "python benchmarks/gateway.py --peers PEERS"
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def litellm(peers: Path, delay_ms: float, connections: int, seconds: float) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    ports = free_port(), free_port()
    words = [
        sys.executable,
        __file__,
        "--peers",
        str(peers),
        "--upstream",
        str(ports[0]),
        str(token_ms(delay_ms) / 1000),
    ]
    fake = subprocess.Popen(words, preexec_fn=lambda: os.sched_setaffinity(0, cores[1:]))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(port=ports[0], key=KEY))
        proxy = subprocess.Popen(
            [str(peers / "litellm" / "bin" / "litellm"), "--config", str(config), "--port", str(ports[1]),
             "--num_workers", "1"],
            env=os.environ | {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"},
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]),
        )  # fmt: skip
        os.sched_setaffinity(0, cores[1:])
        try:
            wait_ready(f"http://127.0.0.1:{ports[1]}/health/liveliness", proxy, 120.0)
            requests = make_requests(KEY, delay_ms)
            done = asyncio.run(
                run_load(ports[1], requests, connections=connections, seconds=seconds, warm_s=5.0)
            )
            return row(done)
        finally:
            os.sched_setaffinity(0, cores)
            for process in (proxy, fake):
                process.send_signal(signal.SIGTERM)
                process.wait(30)


async def upstream(port: int, token_s: float) -> None:
    """An OpenAI-compatible engine that computes nothing."""
    body = json.dumps(ANSWER).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                length = next((int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length")), 0)
                asked = await reader.readexactly(length)
                if asked and token_s:  # a look whether anybody is there has no body
                    await asyncio.sleep(token_s * json.loads(asked)["max_tokens"])
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    main()
