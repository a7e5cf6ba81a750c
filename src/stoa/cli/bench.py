"""`stoa bench`: measurements that anybody can repeat."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stoa.config import load_settings

app = typer.Typer(no_args_is_help=True, help="Measure this machine with this engine.")


@app.command("lora")
def lora(
    model: Annotated[
        str, typer.Option(help="demo, a model folder, or a random-weight shape: 134m, 1.1b, 8b")
    ] = "134m",
    batch: Annotated[list[int] | None, typer.Option(help="requests at once; repeatable")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="base, same, distinct; repeatable")] = None,
    prompt_tokens: Annotated[int, typer.Option()] = 64,
    output_tokens: Annotated[int, typer.Option()] = 64,
    rank: Annotated[int, typer.Option()] = 16,
    repeats: Annotated[int, typer.Option()] = 3,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    quantize: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    isa: Annotated[str | None, typer.Option(help="force an instruction set path")] = None,
    threads: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Throughput and latency with no adapter, one, and a different one per request."""
    from stoa.bench.lora import MODES, run

    report = run(
        model,
        cache=load_settings().home_path / "cache",
        batches=batch or (1, 8, 32),
        modes=mode or MODES,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        rank=rank,
        repeats=repeats,
        dtype=dtype,
        quantize=quantize,
        isa=isa,
        threads=threads,
    )
    if as_json:
        print(json.dumps(report))
        return
    print(
        f"{report['machine']['cpu']}, {report['model']['kernels']}, {report['model']['name']} "
        f"{dtype if quantize == 'none' else quantize}, rank {rank}"
    )
    names = list(report["rows"][0])
    print("  ".join(f"{name:>13s}" for name in names))
    for row in report["rows"]:
        print("  ".join(f"{row[name]!s:>13s}" for name in names))
