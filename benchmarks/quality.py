"""What rounding the base weights does to answers: exact match of the bundled adapters, by quantization.

python benchmarks/quality.py --out docs/results/quality-demo.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stoa.bench.machine import machine_facts
from stoa.demo import ADAPTERS_DIR, BASE_DIR
from stoa.demo.tasks import TASKS, expected, sample_inputs
from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.adapters.peft import read_adapter
from stoa.engine.model.config import read_model_config


def exact_match(quantize: str, words: list[str]) -> dict[str, float]:
    """Share of `words` that each adapter (None: the base) answers exactly, all in one mix."""
    engine = Engine(EngineConfig(model=str(BASE_DIR), quantize=quantize, pool_bytes=1 << 28))  # type: ignore[arg-type]
    assert engine.tokenizer is not None
    config = read_model_config(BASE_DIR)
    asked: dict[str, tuple[str | None, str]] = {}
    for task in TASKS:
        path = ADAPTERS_DIR / task if task else None
        ref = AdapterRef(id=read_adapter(path, config, max_rank=512).id, path=str(path)) if path else None
        for word in words:
            prompt = engine.tokenizer.encode(f"<|bos|><|user|>{word}<|end|><|assistant|>")
            asked[str(len(asked))] = (task, word)
            params = SamplingParams(max_tokens=20, temperature=0)
            engine.add_request(
                GenerationRequest(id=str(len(asked) - 1), prompt_token_ids=prompt, params=params, adapter=ref)
            )
    answers = dict.fromkeys(asked, "")
    while engine.has_requests:
        for event in engine.step():
            answers[event.request_id] += event.text
        if engine.idle:
            engine.wakeup.wait(0.1)
            engine.wakeup.clear()
    engine.close()
    right: dict[str, list[bool]] = {}
    for id, (task, word) in asked.items():
        right.setdefault(task or "base", []).append(answers[id] == expected(task, word))
    return {task: sum(hits) / len(hits) for task, hits in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = sample_inputs(args.words, seed=1)
    rows = [{"weights": q, **exact_match(q, words)} for q in ("none", "int8", "int4")]
    for row in rows:
        print("  ".join(f"{k} {v if isinstance(v, str) else format(v, '.4f')}" for k, v in row.items()))
    if args.out:
        report = {"machine": machine_facts(), "words": args.words, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
