"""`stoa doctor`: what this machine has, what Stoa will use of it, and what is missing."""

from __future__ import annotations

import json
import shutil
from typing import Annotated, Any

import typer

from stoa.config import load_settings
from stoa.errors import StoaError


def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show hardware, instruction sets, memory bandwidth, kernels, and what is missing."""
    facts = gather()
    if as_json:
        print(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(key.replace("_", " "), str(shown) if value not in ("", []) else "-")
    Console().print(table)


def gather() -> dict[str, Any]:
    from stoa.bench.machine import machine_facts
    from stoa.engine.kernels import describe, measure_read_bandwidth

    kernels = describe()
    home = load_settings().home_path
    place = next(p for p in (home, *home.parents) if p.exists())
    return {
        **machine_facts(),
        "kernel_paths": kernels["available"],
        "kernels_used": kernels["chosen"],
        "threads": kernels["threads"],
        "read_bandwidth_gb_s": round(measure_read_bandwidth(), 1),
        "c_compiler": shutil.which("cc") or shutil.which("gcc") or "",
        "gpus": _gpus(),
        "cuda": _cuda(),
        "home": str(home),
        "home_free_gib": round(shutil.disk_usage(place).free / (1 << 30), 1),
        "note": kernels["reason"],
    }


def _cuda() -> str:
    """The GPU that `--device cuda` would use, or why there is none."""
    from stoa.engine.kernels.cuda.device import find_gpu

    try:
        gpu = find_gpu()
    except StoaError as error:
        return error.message
    return f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, driver of CUDA {gpu.driver or '-'}"


def _gpus() -> list[str]:
    """Names by the driver's own tool."""
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run([tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
