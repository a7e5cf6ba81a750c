"""One workload in Stoa, vLLM (CPU), transformers + PEFT and llama.cpp, in turn, on this machine.

    benchmarks/setup_peers.sh PEERS
    python benchmarks/compare.py --peers PEERS --model 134m --out docs/results/compare-134m.json

Each engine runs in an environment and a process of its own. Rounds go over all engines and modes before the next
begins, so that a slow minute of the machine does not fall on one engine; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from stoa.bench.machine import machine_facts
from stoa.bench.synthetic import write_adapter, write_model
from stoa.config import load_settings

HERE = Path(__file__).parent
PEERS = {"vllm": "vllm_cpu.py", "peft": "peft_mixed.py", "llama.cpp": "llama_cpp.py"}
QUANTIZED = {"stoa", "llama.cpp"}
SERIAL_BATCH = 8  # different adapters are served one after the other: larger batches only take longer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--engine", action="append", choices=["stoa", *PEERS], help="default: all there are")
    parser.add_argument("--model", default="134m")
    parser.add_argument("--quantize", default="none", choices=["none", "int8", "int4"])
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--mode", action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="runs in a process, after one to warm up")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    batches, modes = args.batch or [1, 8, 32], args.mode or ["base", "distinct"]
    cache = load_settings().home_path / "cache" / "bench"
    write_model(args.model, cache / args.model)
    for i in range(max(batches)):
        folder = cache / f"{args.model}-r16" / f"adapter-{i:03d}"
        write_adapter(cache / args.model / "config.json", folder, rank=16, seed=i)
    engines = chosen(args.engine, args.peers, args.quantize)
    found: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(args.rounds):
        for mode in modes:
            for engine in engines:
                most = SERIAL_BATCH if (engine, mode) == ("llama.cpp", "distinct") else max(batches)
                options = ["--mode", mode, "--repeats", str(args.repeats)]
                options += [word for b in batches if b <= most for word in ("--batch", str(b))]
                if engine in QUANTIZED:
                    options += ["--quantize", args.quantize]
                for row in run(engine, args.peers, args.model, cache, options):
                    found.setdefault((engine, mode, row["batch"]), []).append(row["output_tok_s"])
    rows = [
        {"engine": e, "mode": m, "batch": b, "output_tok_s": statistics.median(v), "rounds": v}
        for (e, m, b), v in found.items()
    ]
    report = {
        "machine": machine_facts(),
        "model": args.model,
        "quantize": args.quantize,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "command": command(args),
        "rows": rows,
    }
    for row in rows:
        print(
            f"{row['engine']:9s} {row['mode']:9s} {row['batch']:3d} {row['output_tok_s']:9.1f} tok/s  {row['rounds']}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def chosen(named: list[str] | None, peers: Path, quantize: str) -> list[str]:
    """The engines named, or Stoa and all peers set up; with quantized weights, those that have them."""
    there = ["stoa", *(peer for peer in PEERS if (peers / peer / "bin" / "python").exists())]
    return [engine for engine in named or there if quantize == "none" or engine in QUANTIZED]


def command(args: argparse.Namespace) -> str:
    """What to type to repeat this, with places of this machine left out."""
    words = [w for w in sys.argv[1:] if w not in ("--out", str(args.out))]
    return "python benchmarks/compare.py " + " ".join("PEERS" if w == str(args.peers) else w for w in words)


def run(engine: str, peers: Path, model: str, cache: Path, options: list[str]) -> list[dict[str, Any]]:
    if engine == "stoa":
        command = [sys.executable, "-m", "stoa.cli", "bench", "lora", "--model", model, "--json", *options]
    else:
        command = [
            str(peers / engine / "bin" / "python"), str(HERE / "peers" / PEERS[engine]),
            "--model", str(cache / model), "--adapters", str(cache / f"{model}-r16"), *options,
        ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    return rows


if __name__ == "__main__":
    main()
