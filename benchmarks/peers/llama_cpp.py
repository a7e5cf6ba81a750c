"""The workload in llama.cpp's server; prints rows as `stoa bench lora --json` does.

A server per batch size, with as many slots, over GGUF files kept beside the model. Its server batches only
requests that name the same adapters, as its README says: in mode distinct it answers one after another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from gguf_files import adapter_file, model_file, quantized_file
from workload import arguments

BUILD = Path(sys.prefix) / "build" / "bin"
KINDS = {"int8": "Q8_0", "int4": "Q4_0"}
# What was tried: 134m on one thread of an AMD EPYC (AVX-512, no AMX) that other work shared, best of 1 to 5 runs,
# so that differences under about 8% say nothing; no other processor, and not with two threads.
#   slower: -fa off (-8% at n = 1, -13% at 8); weights in f16 (-21% at 8); adapters in bf16 instead of f16 (-13% at
#     distinct 2, -34% at same 8); KV in bf16 (-7% at 1); -bs (-10% at 32, one run); Q4_0 with --no-repack (-31% at 1)
#   no clear difference: adapters in f32, -kvu, -ub 128 at 8, -ub 2048 at 32, -lm none, -lm mmap+mlock, Q8_0 --no-repack
#   faster and not taken: llama-quantize --pure (+10% at 1, +7% at 4), since its Q4_0 head is coarser than Stoa's of 8
#     bits. Q4_0 is as the tool makes it by itself, head in Q6_K; a Q8_0 head was as fast at 1 and -11% at 4.
ADAPTER_DTYPE = torch.float16


def main() -> None:
    args = parse()
    folder, adapters = Path(args.model), Path(args.adapters)
    kept = folder.with_name(f"{folder.name}-gguf")
    weights = model_file(folder, kept)
    if args.quantize != "none":
        weights = quantized_file(weights, KINDS[args.quantize], BUILD / "llama-quantize")
    rows = []
    for batch in args.batch:
        count = {"base": 0, "same": 1, "distinct": batch}[args.mode]
        loras = [adapter_file(folder, f, kept, ADAPTER_DTYPE) for f in sorted(adapters.iterdir())[:count]]
        with server(weights, loras, batch, args.prompt_tokens + args.output_tokens) as url:
            wall_s = asyncio.run(measure(url, len(loras), batch, args))
        rows.append(
            {"mode": args.mode, "batch": batch, "output_tok_s": round(batch * args.output_tokens / wall_s, 1)}
        )
    print("\n" + json.dumps({"engine": f"llama.cpp {version()}", "rows": rows}))


def parse() -> argparse.Namespace:
    parser = arguments()
    parser.add_argument("--quantize", default="none", choices=["none", *KINDS])
    return parser.parse_args()


@contextmanager
def server(weights: Path, loras: list[Path], slots: int, tokens: int) -> Iterator[str]:
    """A server that is ready, ended with the block; its URL."""
    port, cores = free_port(), str(os.cpu_count())
    command = [
        str(BUILD / "llama-server"), "-m", str(weights), "--host", "127.0.0.1", "--port", str(port),
        "-t", cores, "-tb", cores, "-np", str(slots), "-fa", "on", "-c", str(slots * (tokens + -tokens % 256)),
        "--cache-ram", "0", "--no-webui", "-lv", "1",
    ]  # fmt: skip
    if loras:
        command += ["--lora", ",".join(map(str, loras)), "--lora-init-without-apply"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not ready(url, process):
                log.seek(0)
                raise SystemExit(f"llama-server did not start:\n{log.read()[-3000:]}")
            yield url
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ready(url: str, process: subprocess.Popen[bytes], patience_s: float = 300) -> bool:
    deadline = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


async def measure(url: str, adapters: int, batch: int, args: argparse.Namespace) -> float:
    """The median time of `args.repeats` runs after one to warm up."""
    rng = np.random.default_rng(0)
    async with httpx.AsyncClient(
        base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def run() -> float:
            prompts = rng.integers(3, 32000, (batch, args.prompt_tokens)).tolist()
            bodies = [request(p, i % adapters if adapters else None, args) for i, p in enumerate(prompts)]
            started = time.perf_counter()
            replies = await asyncio.gather(*(client.post("/completion", json=body) for body in bodies))
            wall_s = time.perf_counter() - started
            for reply in replies:
                check(reply.raise_for_status().json(), args)
            return wall_s

        await run()
        return statistics.median([await run() for _ in range(args.repeats)])


def request(prompt: list[int], adapter: int | None, args: argparse.Namespace) -> dict[str, Any]:
    """Greedy by one sampler, top-k of 1, without the default chain's passes over the vocabulary.

    `lora` is always given where adapters are loaded: without it the server applies all of them.
    """
    body = {
        "prompt": prompt,
        "n_predict": args.output_tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
    }
    return body if adapter is None else body | {"lora": [{"id": adapter, "scale": 1.0}]}


def check(reply: dict[str, Any], args: argparse.Namespace) -> None:
    """The server's own count: the whole prompt was computed, and every token asked for came."""
    seen = reply["timings"]["prompt_n"], reply["tokens_predicted"]
    if seen != (args.prompt_tokens, args.output_tokens):
        raise SystemExit(
            f"prompt and output tokens {seen}, asked for {args.prompt_tokens}, {args.output_tokens}"
        )


def version() -> str:
    done = subprocess.run([str(BUILD / "llama-server"), "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0].removeprefix("version: ")


if __name__ == "__main__":
    main()
