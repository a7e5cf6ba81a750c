"""Writes docs/performance.md and its charts from docs/results; run.py calls it.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plot import draw

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"
ENGINES = {
    "stoa": "**Stoa**",
    "vllm": "vLLM CPU 0.32",
    "peft": "transformers + PEFT",
    "llama.cpp": "llama.cpp",
}
Report = dict[str, Any]

HEAD = """# Performance

Every table names its command; `python benchmarks/run.py --peers PEERS --data DATA` repeats them all and writes this
page. Ratios are from one run on one machine. The machines are virtual and shared, so figures wander by a tenth; which
instruction sets a machine has matters more than anything else here. bf16 unless said otherwise; weights are random, of
the named shape; greedy; speculation off.

A step's floor is what it must read (packed weights, each adapter in use once, keys and values) over the read bandwidth
that `stoa doctor` measures, or its multiply-adds over the machine's rate, whichever is longer. Without AMX, the second
one rules large batches: a 134M step of 32 rows is 7.1 GFLOP, 17 ms at the 420 GFLOP/s of two cores with AVX-512-BF16.
"""


def load(name: str) -> Report | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(map(str, head))]
    lines += [["---"] * len(lines[0]), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine(report: Report) -> str:
    m = report["machine"]
    sets = ", ".join(m["instruction_sets"])
    return f"{m['cpu']}, {m['cores']} cores ({sets}), Python {m['python']}, torch {m['torch']}"


def compare(model: str, title: str) -> str:
    report = load(f"compare-{model}")
    if report is None:
        return ""
    speed = {(r["engine"], r["mode"], r["batch"]): r["output_tok_s"] for r in report["rows"]}
    batches = sorted({b for _, _, b in speed})
    engines = [e for e in ENGINES if any(key[0] == e for key in speed)]
    columns = [(mode, b) for mode in ("base", "distinct") for b in batches]
    rows = [
        [ENGINES[e], *(f"{speed[e, m, b]:.0f}" if (e, m, b) in speed else "-" for m, b in columns)]
        for e in engines
    ]
    chart = RESULTS / f"compare-{model}.svg"
    chart.write_text(draw(report))
    return (
        f"\n## {title}\n\n{machine(report)}. Output tokens per second, 64 tokens in, 64 out, prompts "
        f"included; n requests at once, on the base model (LoRA off where an engine has such a switch) or each on a rank-16 "
        f"adapter of its own on all seven linears. Medians after a warm-up.\n\n![chart](results/{chart.name})\n\n"
        + table(["", *(f"{m}, n = {b}" for m, b in columns)], rows)
        + "\n"
        + ratios(speed, max(batches), engines)
        + f"\n```\n{report['command']}\n```\n"
    )


def ratios(speed: dict[tuple[str, str, int], float], n: int, engines: list[str]) -> str:
    own = speed["stoa", "distinct", n]
    others = [e for e in engines if e != "stoa" and (e, "distinct", n) in speed]
    parts = [f"{own / speed[e, 'distinct', n]:.1f} times {ENGINES[e]}" for e in others]
    best = [
        (b, max((speed[e, "base", b], e) for e in engines if e != "stoa" and (e, "base", b) in speed))
        for b in sorted({b for _, _, b in speed})
    ]
    faster = ", ".join(f"{speed['stoa', 'base', b] / s:.2f} at n = {b} ({ENGINES[e]})" for b, (s, e) in best)
    vllm = (
        f", and {own / speed['vllm', 'base', n]:.2f} of vLLM's without any"
        if ("vllm", "base", n) in speed
        else ""
    )
    return (
        f"With {n} different adapters Stoa gives {', '.join(parts)}{vllm}; {own / speed['stoa', 'base', n]:.2f} of what it "
        f"gives without adapters. Base only, against the fastest of the others: {faster}.\n"
    )


def own() -> str:
    names = {
        "lora-134m-avx512bf16": "134m bf16, AVX-512-BF16", "lora-134m-avx512": "134m bf16, AVX-512 without BF16",
        "lora-134m-avx2": "134m bf16, AVX2", "lora-134m-int8": "134m int8", "lora-134m-int4": "134m int4",
        "lora-1.1b-int8": "1.1b int8", "lora-1.1b-int4": "1.1b int4",
    }  # fmt: skip
    rows, commands, where = [], [], ""
    for name, shown in names.items():
        if (report := load(name)) is None:
            continue
        where = f"{machine(report)}; {report['machine']['read_bandwidth_gb_s']} GB/s read"
        commands.append(report["command"])
        rows += [
            [shown, r["mode"], r["batch"], f"{r['output_tok_s']:.0f}", f"{r['ttft_ms_p50']:.0f}", f"{r['prefill_ms']:.0f}",
             f"{r['itl_ms_p50']:.1f}", r["roofline_share"]]
            for r in report["rows"]
        ]  # fmt: skip
    if not rows:
        return ""
    head = ["", "mode", "n", "tok/s", "TTFT p50 ms", "all prompts ms", "step ms", "share of the memory floor"]
    return (
        f"\n## Stoa by instruction set and weights\n\n{where}.\n\n{table(head, rows)}\n```\n"
        + "\n".join(commands)
        + "\n```\n"
    )


def streams() -> str:
    rows, commands = [], []
    for model in ("134m", "1.1b"):
        for bits in ("int8", "int4"):
            if (report := load(f"stream-{model}-{bits}")) is None:
                continue
            speed = {r["engine"]: r["output_tok_s"] for r in report["rows"]}
            if "llama.cpp" not in speed:
                continue
            ratio = speed["stoa"] / speed["llama.cpp"]
            rows.append([model, bits, f"{speed['stoa']:.0f}", f"{speed['llama.cpp']:.0f}", f"{ratio:.2f}"])
            commands.append(report["command"])
    if not rows:
        return ""
    return (
        "\n## One stream, rounded weights\n\nOutput tokens per second, base only; llama.cpp in Q8_0 and Q4_0, which hold as many "
        "bits a weight (8.5 and 4.5) but for the output head of int4 (6.6 in llama.cpp, 8.5 here).\n\n"
        + table(["", "", "Stoa", "llama.cpp", "ratio"], rows)
        + "\n```\n" + "\n".join(commands) + "\n```\n"
    )  # fmt: skip


def quality() -> str:
    text = ""
    if report := load("quality-demo"):
        keys = list(report["rows"][0])
        rows = [[r[k] if k == "weights" else f"{r[k]:.3f}" for k in keys] for r in report["rows"]]
        text += f"Exact match of the bundled adapters on {report['words']} held-out words:\n\n{table(keys, rows)}\n"
        text += "```\npython benchmarks/quality.py\n```\n"
    if report := load("perplexity"):
        training = report["training"]
        rows = [
            [
                r["weights"],
                r["dtype"],
                *(f"{r[t]['perplexity']:.3f} ({r[t]['increase_percent']:+.3f} %)" for t in ("gsm8k", "e2e")),
            ]
            for r in report["rows"]
        ]
        text += (
            "\nPerplexity on real text held out, of a small model trained on such text "
            f"({training['parameters'] / 1e6:.0f} million parameters, {training['minutes']:.0f} minutes). It is far from converged, so "
            "that what int4 costs a good model may be more than shown here:\n\n"
            f"{table(['weights', 'compute', 'GSM8K', 'E2E'], rows)}\n```\n{report['command']}\n```\n"
        )
    return f"\n## What rounding costs in quality\n\n{text}" if text else ""


def adapters() -> str:
    if (report := load("adapters-134m")) is None:
        return ""
    keys, load_ = list(report["rows"][0]), report["workload"]
    few, many = report["rows"][0]["output_tok_s"], report["rows"][-1]["output_tok_s"]
    cold = [
        [r["prompt_tokens"], r["read_ms"], r["cold_ms"], r["resident_ms"], r["base_ms"],
         f"{r['cold_ms'] / r['read_ms']:.1f}", f"{(r['cold_ms'] - r['resident_ms']) / r['read_ms']:.1f}",
         f"{r['resident_ms'] / r['base_ms']:.2f}"]
        for r in report["cold"]
    ]  # fmt: skip
    heads = ["prompt tokens", "file read ms", "cold ms", "resident ms", "base ms", "cold / read", "load / read",
             "resident / base"]  # fmt: skip
    return (
        f"\n## Many adapters, and a cold one\n\n{load_['at_once']} requests always running, adapters by Zipf's law with exponent "
        f"{load_['zipf']:g}; the pool has {load_['pool_gib']:g} GiB, host memory behind it {load_['host_gib']:g} GiB.\n\n"
        + table(keys, [list(r.values()) for r in report["rows"]])
        + f"\nMany against few: {many / few:.2f}. The first token of a request alone, its adapter "
        f"({report['cold'][0]['adapter_mb']} MB) out of the page cache, resident, or none; beside it, reading the adapter's file. "
        "Load: what cold takes longer than resident. The pool's memory was in use before, as on a server that has run for a "
        f"while; memory that never was can cost three times the load.\n\n{table(heads, cold)}\n```\n{report['command']}\n```\n"
    )


def prefix() -> str:
    if (report := load("prefix-134m")) is None:
        return ""
    load_ = report["workload"]
    return (
        f"\n## Prefix cache on a real trace\n\nThe first {load_['requests']} requests of Mooncake's conversation trace, lengths "
        f"scaled by 1/32 (a shared block of 512 tokens becomes one of 16), {load_['prompt_tokens']} prompt tokens, time compressed "
        f"so that prefilling alone takes {load_['load']:g} of it without a cache. A cache without bounds would find "
        f"{report['unlimited_hit_rate']:.3f} of the prompt tokens.\n\n"
        + table(list(report["rows"][0]), [list(r.values()) for r in report["rows"]])
        + f"\n```\n{report['command']}\n```\n"
    )


def speculation() -> str:
    if (report := load("speculation")) is None:
        return ""
    plain = {(r["text"], r["at_once"]): r["output_tok_s"] for r in report["rows"] if not r["speculation"]}
    rows = [
        [r["text"], r["at_once"], f"{plain[r['text'], r['at_once']]:.0f}", f"{r['output_tok_s']:.0f}",
         f"{r['output_tok_s'] / plain[r['text'], r['at_once']]:.2f}", f"{r['accepted']} of {r['drafted']}"]
        for r in report["rows"] if r["speculation"]
    ]  # fmt: skip
    return (
        '\n## Speculation by prompt lookup\n\nQuestions of GSM8K, continued by a small model trained on such text; in "said again" '
        "the question stands in the prompt twice, cut off in the second. Output tokens per second.\n\n"
        + table(["text", "at once", "off", "on", "ratio", "guesses right"], rows)
        + "\n```\npython benchmarks/speculation.py --data DATA --folder FOLDER\n```\n"
    )


def fairness() -> str:
    if (report := load("fairness-134m")) is None:
        return ""
    load_, rows, gaps = report["workload"], report["rows"], {g["fairness"]: g for g in report["gap"]}
    alone, ours = rows[0], rows[-1]
    keys = list(ours)
    shown = [[row.get(key, "") for key in keys] for row in rows]
    tokens, cost = gaps["tokens"], gaps["cost"]
    return (
        f"\n## A steady project beside a flood\n\n{machine(report)}. 134M; one project sends {load_['steady_per_s']:g} requests a "
        f"second at random times, another {load_['flood_per_s']:g}, which is more than can be served; {load_['prompt_tokens']} tokens "
        f"in, {load_['output_tokens']} out, {load_['seconds']:g} s each. `off`: first come, first served; `tokens`: plain VTC; `cost`: "
        f"the default.\n\n{table(keys, shown)}\nBeside the flood the steady project's p99 TTFT is "
        f"{ours['steady_ttft_ms_p99'] / alone['steady_ttft_ms_p99']:.2f} of what it is alone, its throughput "
        f"{ours['steady_tok_s'] / alone['steady_tok_s']:.2f}.\n\nTwo projects that always have requests waiting, one with prompts of "
        f"384 tokens and adapters of rank {load_['rank']}, one with 48 tokens and none. Gap: the difference of what they were served, "
        "in seconds of the engine (steps and memory held); tok/s counts prompts too.\n\n"
        + table(list(cost), [list(g.values()) for g in (tokens, cost)])
        + f"\nCounted in cost, the largest gap is {cost['largest_gap_s'] / tokens['largest_gap_s']:.2f} of what plain VTC leaves, at "
        f"{cost['tok_s'] / tokens['tok_s']:.2f} of its throughput.\n\n```\n{report['command']}\n```\n"
    )


def gateway() -> str:
    report, rates = load("gateway"), load("usage-rate")
    if report is None:
        return ""
    load_, peer = report["workload"], report["litellm"]
    heads = ["", "added p50 ms", "added p99 ms", "requests/s at most"]
    rows = [
        [name, r["added"]["p50_ms"], r["added"]["p99_ms"], r["most"]["requests_per_s"]]
        for name, r in (("**Stoa**", report), ("LiteLLM proxy", peer))
    ]
    text = (
        f"\n## The gateway\n\nOne core, {load_['connections']} requests at once, in front of an engine that computes nothing. Stoa with "
        "a key, limits of key and project, a budget, metering and the ledger, in SQLite. LiteLLM keeps customers' keys and budgets in "
        "PostgreSQL through an engine that its package does not carry; here it has its master key, a limit of the deployment and a "
        f"budget of the provider in memory, which is less to do. Added: what a request takes beyond the engine's {load_['delay_ms']:g} ms; "
        f"at most: with an engine that answers at once.\n\n{table(heads, rows)}\nStoa takes {report['ratio']:.0f} times as many "
        f"requests a second.\n\n```\n{report['command']}\n```\n"
    )
    if rates is not None:
        text += (
            "\nUsage records into a database, nothing else running:\n\n"
            + table(list(rates["rows"][0]), [list(r.values()) for r in rates["rows"]])
            + f"\n```\n{rates['command']}\n```\n"
        )
    return text


def startup() -> str:
    if (report := load("startup-134m")) is None:
        return ""
    return (
        f"\n## Start and memory\n\n`stoa serve` of the 134M shape answers `/ready` after {report['ready_s']:.2f} s (median of "
        f"{report['repeats']}, files in the page cache). The engine process peaks at {report['engine_peak_mb']:.0f} MB, "
        f"{report['engine_beyond_weights_mb']:.0f} MB beyond the weights ({report['weights_mb']:.0f} MB), after one request of 128 "
        f"tokens; the gateway at {report['gateway_peak_mb']:.0f} MB.\n\n```\npython benchmarks/startup.py --model 134m\n```\n"
    )


def main() -> None:
    parts = [
        HEAD,
        compare("134m", "134M against other engines"),
        compare("1.1b", "1.1B against other engines"),
        compare("134m-amx", "134M on a machine with AMX, by an earlier build"),
        own(),
        streams(),
        quality(),
        adapters(),
        prefix(),
        speculation(),
        fairness(),
        gateway(),
        startup(),
    ]
    (DOCS / "performance.md").write_text("".join(parts))


if __name__ == "__main__":
    main()
