"""Norms, gates and rotations against the reference, on odd widths; a row's bits in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stoa.engine.kernels.cuda.elementwise import rms_norm, silu_mul
from stoa.engine.kernels.cuda.launch import direct
from stoa.engine.kernels.cuda.rope import rope_append
from stoa.engine.kernels.cuda.step import upload_rows
from stoa.engine.kernels.interface import AttentionRows
from stoa.engine.kernels.reference import TorchKernels
from tests.engine.kernels.test_kernels import DTYPES, close, randn

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
@pytest.mark.parametrize("width", [5, 16, 75, 2304])
def test_norms_and_gates_equal_the_reference(dtype: torch.dtype, width: int) -> None:
    """RMSNorm and SiLU gate; a row's bits do not depend on the others."""
    rng, reference = torch.Generator().manual_seed(0), TorchKernels(dtype)
    x, weight = randn(rng, 9, width) * 3, randn(rng, width)
    gate_up = randn(rng, 9, 2 * width, dtype=dtype) * 8
    gate_up[0, 0], gate_up[1, 0] = -200.0, 200.0
    got, alone, expected = (torch.empty(n, width, dtype=dtype) for n in (9, 1, 9))
    rms_norm(direct, x, weight, 1e-6, got)
    reference.rms_norm(x, weight, 1e-6, expected)
    rms_norm(direct, x[4:5].contiguous(), weight, 1e-6, alone)
    close(got, expected, dtype)
    assert torch.equal(got[4:5], alone)
    silu_mul(direct, gate_up, got)
    reference.silu_mul(gate_up, expected)
    silu_mul(direct, gate_up[4:5].contiguous(), alone)
    close(got, expected, dtype)
    assert torch.equal(got[4:5], alone)


@each_dtype
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 3, 10), (17, 1, 80), (12, 9, 128)], ids=str)
def test_rotations_and_pages_equal_the_reference(dtype: torch.dtype, norm: bool, heads: Any) -> None:
    """Queries, keys and values of every head; a row without a slot leaves no trace."""
    q_heads, kv_heads, d = heads
    rng, reference = torch.Generator().manual_seed(d), TorchKernels(dtype)
    layout = reference.kv_layout(2, kv_heads, d, 16)
    qkv = randn(rng, 4, (q_heads + 2 * kv_heads) * d, dtype=dtype)
    rope, norms = randn(rng, 40, d), [randn(rng, d) if norm else None for _ in range(2)]
    slots = np.asarray([3, 40, 17, -1])
    rows = AttentionRows(
        query_start=np.asarray([0, 4], dtype=np.int32),
        context_len=np.asarray([33], dtype=np.int32),
        block_table=np.asarray([[0, 1, 2]], dtype=np.int32),
        positions=np.asarray([5, 39, 0, 7], dtype=np.int32),
        slots=slots,
    )
    q, expected_q = (torch.empty(4, q_heads * d, dtype=dtype) for _ in range(2))
    pages, expected = (torch.zeros(3 * layout.page_bytes, dtype=torch.uint8) for _ in range(2))
    options: Any = {"q_norm": norms[0], "k_norm": norms[1], "eps": 1e-5}
    device_rows = upload_rows(rows, 16, 16, CPU)
    rope_append(direct, qkv, q, rope, pages, layout, 1, device_rows, **options)
    written = AttentionRows(
        rows.query_start, rows.context_len, rows.block_table, rows.positions[:3], slots[:3]
    )
    reference.rope_append(qkv[:3], expected_q[:3], rope, expected, layout, 1, written, **options)
    close(q[:3], expected_q[:3], dtype)
    close(pages.view(dtype).float(), expected.view(dtype).float(), dtype)
    assert torch.equal(pages.view(dtype) == 0, expected.view(dtype) == 0)
