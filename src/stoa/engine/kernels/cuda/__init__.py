"""The Triton kernels for NVIDIA GPUs, behind `interface.Kernels`.

    kernels.py      what runs when; the room's front door
    linear.py       y = x Wᵀ, plain and quantized (quantized.py)
    lora.py         batched LoRA: shrink and expand over segments of rows (segments.py)
    attention.py    paged attention; rope.py puts keys and values into pages
    elementwise.py  norms and gates; draw.py chooses tokens
    program.py      a decode step's launches as a CUDA graph
    step.py         a step's numbers on their way to the GPU; scratch.py: memory between kernels
    staging.py      adapters on their way there
    tuning.py       what is measured once and kept; device.py: which GPU, or why none

Without a GPU all of it runs in Triton's interpreter (TRITON_INTERPRET=1), slowly: that is how tests see it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stoa.engine.kernels.cuda.device import find_gpu
from stoa.engine.kernels.cuda.launch import launcher
from stoa.errors import ConfigError

if TYPE_CHECKING:
    from stoa.engine.kernels.cuda.kernels import CudaKernels

# What a kernel need not wait for the one before to end: nothing; its beginning (programmatic dependent launch, from
# Hopper on); for the base product beside LoRA, all but its last stores. Neither has been proven on a GPU yet.
_EARLY = ("", "kernels", "lora")


def load_cuda(dtype: torch.dtype, cache: Path | None) -> CudaKernels:
    """Raises ConfigError where no GPU can be used. `cache`: folder where measurements are kept."""
    gpu = find_gpu()  # before Triton is imported: it may not be there
    from stoa.engine.kernels.cuda.kernels import CudaKernels
    from stoa.engine.kernels.cuda.tuning import Tuning, cold_timer

    timer = cold_timer(gpu.device) if gpu.device.type == "cuda" else None
    path = cache / "gpu-tuning.json" if cache is not None else None
    early = os.environ.get("STOA_GPU_EARLY", "") if gpu.capability >= (9, 0) else ""
    if early not in _EARLY:
        raise ConfigError(f"STOA_GPU_EARLY is {early!r}; accepted: kernels, lora, or nothing")
    tuning, launch = Tuning(path, gpu.name, timer), launcher(early=bool(early))
    return CudaKernels(dtype, gpu, tuning, launch, lora_beside=early == "lora")
