"""What an NVIDIA GPU itself must confirm: TRITON_INTERPRET=0 python -m pytest -m gpu tests/gpu

STOA_GPU_TESTS=interpret runs them on small shapes in Triton's interpreter, so that they are known to be right before they
see a GPU. Inputs are fresh in every run; the seed is printed, and STOA_SEED sets it.
"""

# ruff: noqa: E402 - the environment comes before what reads it
from __future__ import annotations

import os
import secrets

INTERPRET = os.environ.get("STOA_GPU_TESTS") == "interpret"
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from stoa.engine.kernels.cuda.device import Gpu, find_gpu, interpreted
from stoa.errors import ConfigError


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")  # also without pyproject.toml


@pytest.fixture(autouse=True, scope="session")
def gpu() -> Gpu:
    if interpreted() and not INTERPRET:
        pytest.skip("Triton's interpreter is on: set TRITON_INTERPRET=0, or STOA_GPU_TESTS=interpret")
    try:
        return find_gpu()
    except ConfigError as error:
        pytest.skip(error.message)


@pytest.fixture
def rng() -> torch.Generator:
    seed = int(os.environ.get("STOA_SEED") or secrets.randbits(31))
    print(f"STOA_SEED={seed}")
    return torch.Generator().manual_seed(seed)
