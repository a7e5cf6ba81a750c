"""What the compiler makes of the kernels for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.interpreter

MOST_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a program can have
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_decode_step_compiles_without_spilling(capability: int) -> None:
    """Llama-3.1-8B's shapes, 64 sequences with 64 adapters: all in registers, 16 bytes a load, on tensor cores."""
    command = [sys.executable, "-m", "tests.engine.kernels.cuda.compiled", str(capability), "--few", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {label.split()[3] for label in found}
    assert {"linear_kernel", "_shrink", "_expand", "_attention", "_rope_append", "_rms_norm"} <= names
    for label, facts in found.items():
        kernel = label.split()[3]
        most = 96 if (capability, kernel) == (80, "_attention") else 0  # outside the loop over keys
        assert facts["spilled"] <= most, label
        assert facts["shared"] <= MOST_SHARED[capability], label
        assert facts["widest_load"] == 16, label
        if kernel in ("linear_kernel", "_attention", "_shrink"):
            assert facts["in_flight"] > 0, label  # copies that a turn of the loop does not wait for
        if kernel == "linear_kernel":
            assert facts["mma"] == [MATRIX[capability]], label  # one family, whatever the rows
        if kernel in ("_shrink", "_expand"):
            assert facts["mma"] == ["mma.sync"], label
