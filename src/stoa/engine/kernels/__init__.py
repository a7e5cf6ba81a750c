"""Arithmetic of the forward pass: one boundary (`interface.py`), one truth (`reference.py`), and fast twins.

`cpu.py` prepares structures for the C code in `csrc/`; `library.py` finds the compiled library and what the
machine has. `cuda/` holds the Triton kernels. Importing this package imports neither torch nor Triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoa.engine.kernels import library
from stoa.engine.kernels.library import (
    available_isas,
    choose_isa,
    default_threads,
    measure_read_bandwidth,
    missing_reason,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from stoa.engine.kernels.interface import Kernels

__all__ = [
    "all_finite",
    "available_isas",
    "default_threads",
    "describe",
    "load_kernels",
    "measure_read_bandwidth",
]


def load_kernels(
    dtype: torch.dtype, *, device: str = "cpu", threads: int | None = None, isa: str | None = None,
    cache: Path | None = None,
) -> Kernels:  # fmt: skip
    """The fastest kernels there are on `device`, "cpu" or "cuda". `isa` forces a path of the CPU: one of
    `available_isas()` or "torch". `cache`: folder where measurements of a GPU's kernels are kept. Raises ConfigError
    where the device cannot be used."""
    if device == "cuda":
        from stoa.engine.kernels.cuda import load_cuda

        return load_cuda(dtype, cache)
    from stoa.engine.kernels.reference import TorchKernels

    if isa == "torch" or missing_reason():
        return TorchKernels(dtype)
    from stoa.engine.kernels.cpu import CpuKernels

    return CpuKernels(dtype, threads=threads or default_threads(), isa=choose_isa(isa))


def all_finite(tensor: torch.Tensor, *, pooled: bool = False) -> bool:
    """Is no value of a bf16, fp16 or fp32 tensor NaN or infinite? `pooled`: looks with all threads, while no step runs."""
    import torch

    exponents = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
    whole = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    bits = tensor.contiguous().view(whole).numpy().view(f"u{tensor.itemsize}")
    return library.all_finite(bits, exponents[tensor.dtype], pooled=pooled)


def describe() -> dict[str, Any]:
    """What `stoa doctor` tells: paths available, the one that would be used, why not a faster one."""
    have = available_isas()
    return {
        "available": [*have, "torch"],
        "chosen": choose_isa(None) if have else "torch",
        "threads": default_threads(),
        "reason": missing_reason(),
    }
