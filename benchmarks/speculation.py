"""What prompt lookup gains on real text: questions of gsm8k, continued by the small model of perplexity.py.

    python benchmarks/perplexity.py --data DATA --folder FOLDER
    python benchmarks/speculation.py --data DATA --folder FOLDER --out docs/results/speculation.json

Half of the requests ask for the question to be said again first (it stands in the prompt twice, cut off in the
second), as edits, summaries and tool calls do; the other half just continue.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from stoa.bench.drive import drive
from stoa.bench.machine import machine_facts
from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams


def questions(data: Path, count: int) -> list[str]:
    with gzip.open(data / "finetune" / "gsm8k_test.jsonl.gz", "rt") as file:
        return [json.loads(line)["question"] for line, _ in zip(file, range(count), strict=False)]


def measure(folder: Path, texts: list[str], repeat: bool, at_once: int, speculation: bool) -> dict[str, Any]:
    engine = Engine(EngineConfig(model=str(folder), speculation=speculation, prefix_caching=False))
    assert engine.tokenizer is not None
    params = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)
    requests = []
    for i, text in enumerate(texts):
        prompt = f"{text}\n{text[: len(text) // 3]}" if repeat else text
        ids = engine.tokenizer.encode(prompt)[-180:]
        requests.append((0.0, GenerationRequest(id=str(i), prompt_token_ids=ids, params=params)))
    speeds = [drive(engine, requests, at_once).output_tok_s for _ in range(4)]
    stats = engine.stats()
    engine.close()
    return {
        "text": "said again" if repeat else "continued",
        "at_once": at_once,
        "speculation": speculation,
        "output_tok_s": round(statistics.median(speeds[1:]), 1),
        "drafted": stats.draft_tokens,
        "accepted": stats.accepted_draft_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="model that perplexity.py has trained")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not (args.folder / "config.json").exists() or not args.data.is_dir():
        sys.exit(f"{args.folder} or {args.data} is not there")
    rows = []
    for repeat in (True, False):
        for at_once, count in ((1, 12), (32, 96)):
            for speculation in (False, True):
                rows.append(measure(args.folder, questions(args.data, count), repeat, at_once, speculation))
                print(rows[-1], flush=True)
    if args.out:
        report = {"machine": machine_facts(), "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
