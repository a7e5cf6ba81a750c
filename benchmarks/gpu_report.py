"""Writes what gpu.py has measured, and what can be reckoned without a GPU, between the marks in gpu.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from stoa.bench.synthetic import SHAPES, linear_shapes

PAGE = Path(__file__).with_name("gpu.md")
NOT_MEASURED = "not measured: no GPU was to be had"
STAGES = ("check", "tune", "lora", "kernels", "peft", "pool")
Reports = dict[str, dict[str, Any]]  # by "stage part", what came of those that went well


def write(folder: Path, page: Path = PAGE) -> None:
    reports = read(folder)
    text = page.read_text()
    text = between(text, "floors", floors())
    text = between(text, "machine", machine(reports))
    text = between(text, "figures", figures(reports))
    text = between(text, "kinds", kinds(reports))
    page.write_text(text)


def read(folder: Path) -> Reports:
    found: Reports = {}
    for stage in STAGES:
        file = folder / f"gpu-{stage}.json"
        if file.exists():
            report = json.loads(file.read_text())
            if report.get("about", {}).get("small"):
                raise SystemExit(f"{file} is of a trial without a GPU: its figures mean nothing")
            parts = report["parts"]
            found |= {f"{stage} {name}": part for name, part in parts.items() if "failed" not in part}
    return found


def between(text: str, name: str, content: str) -> str:
    """`content` in place of what stands between the marks of `name`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"there are no marks for {name}")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, head))]
    lines += [["---"] * len(lines[0]), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# -- what can be reckoned


def step_bytes(shape: str, batch: int, context: float, rank: int) -> tuple[float, float, float]:
    """Bytes that a bf16 decode step reads: linear weights with the output head, keys and values, adapters (one a row)."""
    c = SHAPES[shape]
    linears, layers = linear_shapes(c), c["num_hidden_layers"]
    weights = 2 * (layers * sum(n * k for n, k in linears.values()) + c["vocab_size"] * c["hidden_size"])
    kv_token = 2 * 2 * layers * c["num_key_value_heads"] * c["head_dim"]
    adapter = 2 * layers * rank * sum(n + k for n, k in linears.values())
    return weights, batch * context * kv_token, batch * adapter


def floors(shape: str = "8b", context: float = 192, bandwidth: float = 4.8e12) -> str:
    rows = []
    for rank in (16, 8):
        for batch in (1, 32, 64):
            weights, kv, adapters = step_bytes(shape, batch, context, rank)
            base = weights + kv
            rows.append(
                (rank, batch, f"{weights / 1e9:.2f}", f"{kv / 1e9:.2f}", f"{adapters / 1e9:.2f}",
                 f"{1e3 * base / bandwidth:.2f}", f"{1e3 * (base + adapters) / bandwidth:.2f}",
                 f"{base / (base + adapters):.3f}")
            )  # fmt: skip
    head = ("rank", "batch", "weights, GB", "keys and values, GB", "adapters, GB", "base, ms", "distinct, ms",
            "base / distinct")  # fmt: skip
    return table(head, rows)


# -- what was measured


def machine(reports: Reports) -> str:
    found = reports.get("check facts")
    if found is None:
        return f"{NOT_MEASURED}.\n"
    rates = (
        f"copy {found['copy_gb_s']} GB/s (read and written), read {found['read_gb_s']} GB/s, host to device "
        f"{found['host_to_device_gb_s']} GB/s, bf16 product {found['matrix_tflop_s']} TFLOP/s"
    )
    tests = reports.get("check tests")
    said = "not run" if tests is None else "passed" if tests["passed"] else "FAILED"
    return (
        f"{found['gpu']}, {found['gpu_memory_gib']} GiB, capability {found['capability']}, driver "
        f"{found.get('driver', 'unknown')}, CUDA {found['cuda']}, torch {found['torch']}, Triton {found['triton']}; "
        f"{found['cores']} cores of {found['cpu']}. {rates}. `tests/gpu`: {said}.\n"
    )


def figures(reports: Reports) -> str:
    lora = {(r["mode"], r["batch"]): r for r in reports.get("lora bf16", {}).get("rows", [])}
    kernels = {(r["kind"], r["batch"]): r for r in reports.get("kernels bf16", {}).get("rows", [])}

    def itl_ms(mode: str, batch: int) -> float:
        return float(lora[mode, batch]["itl_ms_p50"])

    wanted: list[tuple[str, str, str, Callable[[], float]]] = [
        *(
            (f"decode, batch {b}, an adapter each, against base", "0.8", "0.93",
             partial(lambda b: itl_ms("base", b) / itl_ms("distinct", b), b))
            for b in (32, 64)
        ),
        *(
            (f"base decode step, batch {b}, share of the memory roofline", "0.6", "0.85",
             partial(lambda b: lora["base", b]["roofline_share"], b))
            for b in (1, 64)
        ),
        ("32 adapters at once, times transformers + PEFT", "8", "20", partial(against_peft, reports)),
        ("added to a token at batch 32 by an adapter each, ms (Punica: 2)", "", "",
         lambda: itl_ms("distinct", 32) - itl_ms("base", 32)),
        *(
            (f"LoRA kernels alone, batch {b}, share of bytes / bandwidth", "0.5", "0.75",
             partial(lambda b: kernels["lora", b]["share"], b))
            for b in (1, 32, 64)
        ),
        *(
            (f"2,000 adapters of rank {r} in host memory, Zipf 1.0, against 32", "0.85", "0.97",
             partial(pooled, reports, f"pool rank{r}"))
            for r in (8, 4)
        ),
    ]  # fmt: skip
    rows = [(name, least, aim, told(figure)) for name, least, aim, figure in wanted]
    return table(("", "at least", "aim", "measured"), rows) + ("\n" + steps(lora) if lora else "")


def told(figure: Callable[[], float]) -> str:
    try:
        return f"{figure():.3g}"
    except (KeyError, IndexError, ValueError):
        return NOT_MEASURED


def against_peft(reports: Reports) -> float:
    """The better of PEFT's ways."""
    ours = reports["peft stoa"]["rows"][0]["output_tok_s"]
    theirs = [
        row["output_tok_s"]
        for part in ("peft eager", "peft compiled")
        for row in reports.get(part, {}).get("rows", [])
    ]
    return float(ours / max(theirs))


def pooled(reports: Reports, part: str) -> float:
    few, many = reports[part]["rows"]
    return float(many["output_tok_s"] / few["output_tok_s"])


def steps(lora: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Every row of the lora stage."""
    names = (
        "output_tok_s",
        "itl_ms_p50",
        "itl_ms_p99",
        "floor_ms",
        "roofline_share",
        "gpu_ms_p50",
        "host_share",
    )
    return table(
        ("mode", "batch", *names), ((*key, *(row.get(n, "") for n in names)) for key, row in lora.items())
    )


def kinds(reports: Reports) -> str:
    """A step's time, kind by kind."""
    found = reports.get("kernels bf16")
    if found is None:
        return f"{NOT_MEASURED}.\n"
    names = ("kind", "batch", "ms", "gb", "floor_ms", "share")
    return table(names, ([row[name] for name in names] for row in found["rows"]))
