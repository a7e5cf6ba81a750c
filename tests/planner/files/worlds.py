"""Small documents for tests, with the files they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CATALOG = (
    "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice\n"
    "small,8,32,L4,1,,eu,eu-a,0.8,0.3\nsmall,8,32,L4,1,,eu,eu-b,0.9,0.25\nlarge,8,32,H100,1,,eu,eu-a,10.0,\n"
    "tiny,8,32,T4,1,,eu,eu-a,0.5,0.2\n"
)
PROFILE = {"name": "p", "fixed_s": 0.02, "prompt_row_s": 1e-5, "decode_row_s": 1e-4, "kv_tokens": 100_000}
HOSTED = {
    "x/m": {
        "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "input_cost_per_token_above_1k_tokens": 3e-6,
        "litellm_provider": "x", "max_input_tokens": 500,
    },
}  # fmt: skip


def files(folder: Path) -> Path:
    """A price list, a profile, a list of hosted models, a trace of spot machines, and two days of requests."""
    (folder / "prices.csv").write_text(CATALOG)
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    (folder / "hosted.json").write_text(json.dumps(HOSTED))
    (folder / "spot.json").write_text(json.dumps({"metadata": {"gap_seconds": 60}, "data": [1, 2, 0, 1]}))
    rows = [f"{60 * i},{'ab'[i % 2]},{100 + i % 50},{10 + i % 5}" for i in range(2880)]
    (folder / "trace.csv").write_text(
        "arrival_s,project,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n"
    )
    return folder


def document(**changes: Any) -> dict[str, Any]:
    """One cloud region, one model, one service; a key that is None is left out."""
    base: dict[str, Any] = {
        "place": [cloud([{"type": "small"}])],
        "throughput": [{"model": "m", "machines": ["*"], "profile": "profile.json"}],
        "service": [{"name": "chat", "models": ["m"], "ttft": "2 s"}],
        "demand": {"trace": "trace.csv"},
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def cloud(machine: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": "ireland",
        "kind": "cloud",
        "region": "eu",
        "prices": "prices.csv",
        "machine": list(machine),
        **changes,
    }


def owned(machine: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {"name": "cellar", "kind": "owned", "machine": list(machine), **changes}


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
