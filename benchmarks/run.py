"""All figures of docs/performance.md: runs each measurement, keeps its JSON in docs/results, writes the page.

    benchmarks/setup_peers.sh PEERS
    python benchmarks/run.py --peers PEERS --data ../shared/data          # an hour and more
    python benchmarks/run.py --peers PEERS --data ../shared/data --only compare-134m --only startup-134m

Nothing else should run meanwhile. Measurements that lack their peers or data are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
TRACE = "traces/mooncake_conversation.jsonl.gz"


def measurements(peers: str, data: str) -> dict[str, list[str]]:
    """Name of the result -> command. `{out}` is where its JSON goes; without it, the JSON is what it prints."""
    compare = ["benchmarks/compare.py", "--peers", peers, "--out", "{out}"]
    one_stream = [*compare, "--mode", "base", "--batch", "1", "--rounds", "1", "--repeats", "5"]
    stoa = ["-m", "stoa.cli", "bench"]
    found = {
        "compare-134m": [*compare, "--model", "134m", "--rounds", "1", "--repeats", "5"],
        "compare-1.1b": [*compare, "--model", "1.1b", "--rounds", "1", "--repeats", "3"],
        "adapters-134m": [*stoa, "adapters", "--json"],
        "prefix-134m": [*stoa, "prefix", f"{data}/{TRACE}", "--requests", "500", "--pool-gib", "2", "--json"],
        "fairness-134m": [*stoa, "fairness", "--json"],
        "gateway": ["benchmarks/gateway.py", "--peers", peers, "--out", "{out}"],
        "usage-rate": ["benchmarks/usage_rate.py", "--out", "{out}"],
        "startup-134m": ["benchmarks/startup.py", "--out", "{out}"],
        "quality-demo": ["benchmarks/quality.py", "--out", "{out}"],
        "perplexity": ["benchmarks/perplexity.py", "--data", data, "--folder", "build/perplexity", "--out", "{out}"],
        "speculation": ["benchmarks/speculation.py", "--data", data, "--folder", "build/perplexity", "--out", "{out}"],
    }  # fmt: skip
    for bits in ("int8", "int4"):
        found[f"lora-134m-{bits}"] = [*stoa, "lora", "--repeats", "5", "--quantize", bits, "--json"]
        found[f"lora-1.1b-{bits}"] = [*stoa, "lora", "--model", "1.1b", "--batch", "1", "--batch", "32",
                                      "--repeats", "3", "--quantize", bits, "--json"]  # fmt: skip
        for model in ("134m", "1.1b"):
            found[f"stream-{model}-{bits}"] = [*one_stream, "--model", model, "--quantize", bits]
    for isa in ("avx512bf16", "avx512", "avx2"):
        found[f"lora-134m-{isa}"] = [*stoa, "lora", "--batch", "1", "--batch", "32", "--repeats", "5",
                                     "--mode", "base", "--mode", "distinct", "--isa", isa, "--json"]  # fmt: skip
    return found


def run(name: str, command: list[str]) -> str:
    """Empty, or what went wrong."""
    out = RESULTS / f"{name}.json"
    words = [sys.executable, *(str(out) if w == "{out}" else w for w in command)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return (done.stderr or done.stdout)[-600:]
    if "{out}" not in command:
        shown = json.loads(done.stdout.strip().splitlines()[-1])
        shown["command"] = "stoa " + " ".join(Path(w).name if w.endswith(".gz") else w for w in command[2:])
        out.write_text(json.dumps(shown, indent=1) + "\n")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", required=True)
    parser.add_argument("--data", required=True, help="folder with the traces and texts")
    parser.add_argument("--only", action="append")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, command in measurements(args.peers, args.data).items():
        if args.only and name not in args.only:
            continue
        started = time.perf_counter()
        problem = run(name, command)
        print(f"{name:20s} {time.perf_counter() - started:6.0f} s  {problem or 'done'}", flush=True)
    subprocess.run([sys.executable, "benchmarks/report.py"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
