"""Compiles kernels for a GPU that is not there, exactly as a launch would: run as a program, without the interpreter.

    python -m tests.engine.kernels.cuda.compiled 90 [--json]

Prints for every kernel of a Llama-3.1-8B step what ptxas made of it: registers, spilled bytes, shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="stoa-compiled-"))

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from stoa.engine.kernels.cuda.device import Gpu
from stoa.engine.kernels.cuda.kernels import CudaKernels
from stoa.engine.kernels.cuda.launch import options
from stoa.engine.kernels.cuda.segments import CudaAdapter
from stoa.engine.kernels.cuda.tuning import Tuning
from stoa.engine.kernels.interface import AttentionRows

HIDDEN, Q_HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 4096, 32, 8, 128, 14336, 128256
META = torch.device("meta")


class Driver:
    """What Triton asks of a GPU before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Compiler:
    """Stands in for `launch.direct`; keeps one line for each kernel and choice of constants."""

    def __init__(self, *, early: bool) -> None:
        self.early = early
        self.found: dict[str, dict[str, Any]] = {}
        self.label = ""

    def __call__(self, kernel: Any, grid: Any, *args: Any, warps: int, stages: int, **constants: Any) -> None:
        made = kernel.warmup(*args, grid=grid, **options(warps, stages, early=self.early), **constants)
        key = f"{self.label} {kernel.fn.__name__} {made.hash[:8]}"
        if key not in self.found:
            self.found[key] = resources(made.asm["cubin"]) | {
                "shared": made.metadata.shared, "warps": warps, "stages": stages, "grid": list(grid),
                "mma": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", made.asm["ptx"]))),
                "widest_load": widest_load(made.asm["ptx"]),
                "in_flight": max(map(int, re.findall(r"cp\.async\.wait_group\s+(\d+)", made.asm["ptx"])), default=0),
            }  # fmt: skip


def resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said.stdout))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


def widest_load(ptx: str) -> int:
    """Bytes that one thread reads from global memory at once."""
    asynchronous = [
        int(n, 0) for n in re.findall(r"cp\.async\.c\w\.shared\.global[^;]*?\], (0x\w+|\d+)", ptx)
    ]
    plain = [int(v or 1) * int(b) // 8 for v, b in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)]
    return max([*asynchronous, *plain], default=0)


def step(rows: int, context: int, *, decode: bool) -> AttentionRows:
    seqs = rows if decode else 1
    blocks = -(-context // 16)
    return AttentionRows(
        query_start=np.arange(seqs + 1, dtype=np.int32) * (1 if decode else rows),
        context_len=np.full(seqs, context, dtype=np.int32),
        block_table=np.zeros((seqs, blocks), dtype=np.int32),
        positions=np.full(rows, context - 1, dtype=np.int32),
        slots=np.zeros(rows, dtype=np.int64),
    )


def layer(kernels: CudaKernels, bits: int, rows: int, *, decode: bool) -> None:
    """One decoder layer and the head, as decoder.py calls them."""

    def empty(width: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(rows, width, dtype=dtype, device=META)

    def packed(splits: tuple[int, ...], k: int) -> Any:
        return kernels.pack_linear(
            [torch.empty(n, k, device=META) for n in splits], [None] * len(splits), bits
        )

    q, kv = Q_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    w_qkv, w_o = packed((q, kv, kv), HIDDEN), packed((HIDDEN,), q)
    w_gate_up, w_down, head = (
        packed((INNER, INNER), HIDDEN),
        packed((HIDDEN,), INNER),
        packed((VOCAB,), HIDDEN),
    )
    residual, x, qkv = empty(HIDDEN, torch.float32), empty(HIDDEN), empty(q + 2 * kv)
    layout = kernels.kv_layout(32, KV_HEADS, HEAD_DIM, 16)
    pages = torch.empty(1000 * layout.page_bytes, dtype=torch.uint8, device=META)
    facts = step(rows, 2048, decode=decode)
    kernels.scratch.expect([[16, 16, 16], [16], [16, 16], [16]])
    lora = kernels.lora_rows(
        list(range(rows + 1)) if decode else [0, rows], [CudaAdapter(0, 0)] * (rows if decode else 1)
    )
    kernels.rms_norm(residual, torch.empty(HIDDEN, device=META), 1e-5, x)
    kernels.linear(x, w_qkv, qkv, lora=lora, index=0)
    table = torch.empty(8192, HEAD_DIM, device=META)
    kernels.rope_append(qkv, empty(q), table, pages, layout, 1, facts)
    kernels.attention(empty(q), empty(q), pages, layout, 1, facts, scale=0.1)
    kernels.linear(empty(q), w_o, residual, lora=lora, index=1, accumulate=True)
    kernels.linear(x, w_gate_up, empty(2 * INNER), lora=lora, index=2)
    kernels.silu_mul(empty(2 * INNER), empty(INNER))
    kernels.linear(empty(INNER), w_down, residual, lora=lora, index=3, accumulate=True)
    kernels.linear(x, head, torch.empty(rows, VOCAB, device=META), index=4)


def compile_for(capability: int, kinds: tuple[tuple[int, int, bool], ...]) -> dict[str, dict[str, Any]]:
    """`kinds`: (bits, rows, decode)."""
    triton.runtime.driver.set_active(Driver(capability))
    compiler = Compiler(early=capability >= 90)
    gpu = Gpu(META, "none", divmod(capability, 10), 132, 0)
    for bits, rows, decode in kinds:
        compiler.label = f"{bits}-bit {'decode' if decode else 'prefill'} {rows}"
        kernels = CudaKernels(torch.bfloat16, gpu, Tuning(None, "none", None), compiler, lora_beside=True)
        layer(kernels, bits, rows, decode=decode)
    return compiler.found


KINDS = (
    (16, 1, True),
    (16, 64, True),
    (16, 2048, False),
    (8, 64, True),
    (4, 64, True),
    (8, 2048, False),
    (4, 2048, False),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("capability", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--few", action="store_true", help="bf16 at 64 rows only")
    asked = parser.parse_args()
    found = compile_for(asked.capability, KINDS[1:2] if asked.few else KINDS)
    if asked.json:
        print(json.dumps(found))
        return
    for name, facts in found.items():
        print(f"{name:50}", *(f"{key}={value}" for key, value in facts.items()))


if __name__ == "__main__":
    main()
