"""`stoa bench`: measurements that anybody can repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stoa.cli.outputs import check_outputs
from stoa.config import load_settings

app = typer.Typer(no_args_is_help=True, help="Measure this machine with this engine.")


@app.command("lora")
def lora(
    model: Annotated[
        str, typer.Option(help="demo, a model folder, or a random-weight shape: 134m, 1.1b, 8b")
    ] = "134m",
    batch: Annotated[list[int] | None, typer.Option(help="requests at once; repeatable", min=1)] = None,
    mode: Annotated[list[str] | None, typer.Option(help="base, same, distinct; repeatable")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    quantize: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    isa: Annotated[str | None, typer.Option(help="force an instruction set path")] = None,
    threads: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    max_batch_tokens: Annotated[int, typer.Option(help="rows in one step; 0: 512, on a GPU 2048", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Throughput and latency with no adapter, one, and a different one per request."""
    from stoa.bench.lora import MODES, run

    checked = load_settings({"dtype": dtype, "quantize": quantize, "threads": threads, "device": device})
    report = run(
        model,
        cache=checked.home_path / "cache",
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
        device=device,
        max_batch_tokens=max_batch_tokens,
    )
    if as_json:
        print(json.dumps(report))
        return
    machine = report["machine"]
    print(
        f"{machine.get('gpu') or machine['cpu']}, {report['model']['kernels']}, {report['model']['name']} "
        f"{dtype if quantize == 'none' else quantize}, rank {rank}"
    )
    _table(report["rows"])


@app.command("adapters")
def adapters(
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    registered: Annotated[
        list[int] | None, typer.Option(help="how many there are to choose from; repeatable", min=1)
    ] = None,
    requests: Annotated[int, typer.Option(min=1)] = 512,
    at_once: Annotated[int, typer.Option(help="requests running at any time", min=1)] = 32,
    zipf: Annotated[float, typer.Option(help="exponent of adapters' popularity")] = 1.0,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    pool_gib: Annotated[float, typer.Option()] = 2.0,
    host_gib: Annotated[float, typer.Option()] = 4.0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    folders: Annotated[
        int, typer.Option(help="write so many; the others are their bytes under other names; 0: all", min=0)
    ] = 0,
    preload: Annotated[bool, typer.Option(help="all into host memory before the clock starts")] = False,
    max_batch_tokens: Annotated[int, typer.Option(help="rows in one step; 0: 512, on a GPU 2048", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Throughput with few and with many registered adapters, and the first token of a cold one."""
    from stoa.bench.adapters import run

    checked = load_settings({"device": device})
    report = run(
        model, cache=checked.home_path / "cache", counts=registered or (32, 2000), zipf=zipf, requests=requests,
        at_once=at_once, rank=rank, prompt_tokens=prompt_tokens, output_tokens=output_tokens, pool_gib=pool_gib,
        host_gib=host_gib, device=device, folders=folders, preload=preload, max_batch_tokens=max_batch_tokens,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
        return
    _table(report["rows"])
    for row in report["cold"]:
        print("first token:", ", ".join(f"{key} {value}" for key, value in row.items()))


@app.command("kernels")
def kernels(
    model: Annotated[
        str, typer.Option(help="a model folder, or a random-weight shape: 134m, 1.1b, 8b")
    ] = "8b",
    batch: Annotated[list[int] | None, typer.Option(help="sequences in a step; repeatable", min=1)] = None,
    context: Annotated[int, typer.Option(help="tokens of each sequence", min=1)] = 192,
    rank: Annotated[int, typer.Option(help="of each sequence's own adapter", min=1)] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 20,
    quantize: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    device: Annotated[str, typer.Option(help="cuda")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """A decode step on a GPU, kind by kind: time, bytes that must be read, and share of the memory's bandwidth."""
    from stoa.bench.kernels import run

    checked = load_settings({"quantize": quantize, "device": device})
    report = run(
        model, cache=checked.home_path / "cache", batches=batch or (1, 32, 64), context=context, rank=rank,
        repeats=repeats, quantize=checked.quantize, device=device,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
        return
    print(f"{report['machine']['gpu']}, {report['model']['name']} {quantize}, rank {rank}")
    _table(report["rows"])


@app.command("fairness")
def fairness(
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    seconds: Annotated[float, typer.Option(help="of each run", min=1)] = 60.0,
    per_s: Annotated[float, typer.Option(help="requests a second of the steady project", min=0.1)] = 2.0,
    times: Annotated[float, typer.Option(help="how many times as many the flood sends", min=0.1)] = 10.0,
    backlog: Annotated[
        int, typer.Option(help="heavy requests, and four times as many light ones", min=1)
    ] = 200,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """A steady project beside a flood, and two projects that always wait."""
    from stoa.bench.fairness import run

    cache = load_settings().home_path / "cache"
    report = run(model, cache=cache, seconds=seconds, per_s=per_s, times=times, backlog=backlog)
    if as_json:
        print(json.dumps(report))
        return
    for row in (*report["rows"], *report["gap"]):
        print(", ".join(f"{key} {value}" for key, value in row.items()))


@app.command("gateway")
def gateway(
    connections: Annotated[int, typer.Option(help="requests at once", min=1)] = 200,
    seconds: Annotated[float, typer.Option(help="of each run", min=1)] = 10.0,
    delay_ms: Annotated[
        float, typer.Option(help="what the engine that computes nothing takes", min=0)
    ] = 500.0,
    db: Annotated[str, typer.Option(help="database; default: SQLite in a temporary folder")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What the gateway adds to a request, with keys, limits, budget and metering on, on one core."""
    from stoa.bench.gateway import run

    report = run(connections=connections, seconds=seconds, delay_ms=delay_ms, db=db)
    if as_json:
        print(json.dumps(report))
        return
    for name in ("added", "most"):
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in report[name].items()))


@app.command("prefix")
def prefix(
    trace: Annotated[Path, typer.Argument(help="a Mooncake trace (.jsonl or .jsonl.gz)")],
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    requests: Annotated[int, typer.Option(help="how many of the trace, from its start", min=2)] = 600,
    load: Annotated[
        float, typer.Option(help="share of the time that prefilling takes without a cache", min=0.01)
    ] = 0.7,
    pool_gib: Annotated[list[float] | None, typer.Option(help="memory for the cache; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Hit rate and time to first token on a trace with real sharing, with and without the prefix cache."""
    from stoa.bench.prefix import run

    cache = load_settings().home_path / "cache"
    report = run(model, trace, cache=cache, requests=requests, load=load, pool_gib=tuple(pool_gib or (1.0,)))
    if as_json:
        print(json.dumps(report))
        return
    print(f"hit rate of an unlimited cache: {report['unlimited_hit_rate']}")
    _table(report["rows"])


@app.command("router")
def router(
    replicas: Annotated[int, typer.Option(min=2)] = 4,
    adapters: Annotated[int, typer.Option(help="how many there are to choose from", min=1)] = 200,
    each: Annotated[int, typer.Option(help="adapters that a replica holds, at least 24", min=24)] = 32,
    zipf: Annotated[list[float] | None, typer.Option(help="exponent of popularity; repeatable")] = None,
    load: Annotated[
        float, typer.Option(help="share of the time that a replica computes prompts", min=0.01)
    ] = 0.4,
    requests: Annotated[int, typer.Option(help="of each run", min=1)] = 20_000,
    seeds: Annotated[int, typer.Option(help="runs to take the mean of", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Adapter hits and waits by router, in a model of a fleet's caches, and the time of a decision."""
    from stoa.bench.router import run

    report = run(
        replicas=replicas, adapters=adapters, each=each, zipf=zipf or (0.8, 1.0, 1.2), load=load,
        requests=requests, seeds=seeds,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
        return
    print("decision, us: " + ", ".join(f"{key} {value}" for key, value in report["decision_us"].items()))
    _table(report["rows"])


@app.command("profile")
def profile(
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    max_num_seqs: Annotated[int, typer.Option(help="sequences in one step", min=1)] = 64,
    max_batch_tokens: Annotated[int, typer.Option(help="rows in one step", min=1)] = 512,
    pool_gib: Annotated[float, typer.Option(help="memory for KV blocks; 0: from the machine's")] = 0.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="auto, bf16 or fp32")] = "auto",
    quantize: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    threads: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path | None, typer.Option(help="write it here, for `stoa simulate --profile`")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """How long steps take by what is in them, and how long a replica takes to load: what policies plan with."""
    from stoa.bench.profile import run

    check_outputs(out=out)
    checked = load_settings({"dtype": dtype, "quantize": quantize, "threads": threads})
    report = run(
        model, cache=checked.home_path / "cache", max_num_seqs=max_num_seqs, pool_gib=pool_gib,
        max_batch_tokens=max_batch_tokens, repeats=repeats, dtype=dtype, quantize=quantize, threads=threads,
    )  # fmt: skip
    if out is not None:
        out.write_text(json.dumps(report, indent=1))
    if as_json:
        print(json.dumps(report))
        return
    for name, value in (*report.items(), *report["fit"].items()):
        if not isinstance(value, dict):
            print(f"{name:>17s}  {value}")


@app.command("failover")
def failover(
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    streams: Annotated[int, typer.Option(help="on each of two replicas", min=1)] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    output_tokens: Annotated[int, typer.Option(min=2)] = 96,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    silence_s: Annotated[float, typer.Option(help="after which a silent replica is given up", min=0.1)] = 5.0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What streams notice when their replica is killed, drained, or falls silent."""
    from stoa.bench.failover import run

    report = run(
        model, cache=load_settings().home_path / "cache", streams=streams, prompt_tokens=prompt_tokens,
        output_tokens=output_tokens, rounds=rounds, silence_s=silence_s,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
        return
    _table(report["rows"])
    print("being ready for it: " + ", ".join(f"{k} {v}" for k, v in report["readiness"].items()))


@app.command("coldstart")
def coldstart(
    model: Annotated[str, typer.Option(help="demo, a model folder, or a random-weight shape")] = "134m",
    quantize: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    threads: Annotated[int, typer.Option()] = 0,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """From nothing to the first token, by stages, against process start and reading the weights once."""
    from stoa.bench.coldstart import run

    checked = load_settings({"quantize": quantize, "threads": threads})
    report = run(
        model, cache=checked.home_path / "cache", quantize=checked.quantize, threads=threads, repeats=repeats
    )
    if as_json:
        print(json.dumps(report))
        return
    print("floor: " + ", ".join(f"{key} {value}" for key, value in report["floor"].items()))
    for row in report["rows"]:
        print(", ".join(f"{key} {value}" for key, value in row.items()))


def _table(rows: list[dict[str, Any]]) -> None:
    print("  ".join(f"{name:>13s}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>13s}" for value in row.values()))
