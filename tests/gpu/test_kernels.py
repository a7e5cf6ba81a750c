"""Every kernel on the device against fp32, on fresh random inputs; in shapes of an 8B model and in odd ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoa.engine.kernels.interface import DrawRow
from stoa.engine.kernels.reference import TorchKernels
from tests.engine.kernels.cuda.truths import lora_part, weights_of
from tests.engine.kernels.test_kernels import DTYPES, adapter, attention_case, attention_step, pack, randn
from tests.gpu.moved import INTERPRET, Moved

pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# (k, splits, bias)
SHAPES: list[tuple[int, tuple[int, ...], bool]] = [(200, (75, 40, 33), True), (1100, (70,), False)]
HEADS = [(4, 2, 16, 16), (3, 3, 10, 16)]  # query heads, KV heads, width, tokens of a block
LENS = [1, 17, 50, 33]
ROWS = (1, 7, 33)
if not INTERPRET:
    SHAPES += [
        (4096, (4096, 1024, 1024), False), (4096, (4096,), False), (4096, (14336, 14336), False),
        (14336, (4096,), False), (3584, (3584, 512, 512), True),
    ]  # fmt: skip
    HEADS += [(32, 8, 128, 16), (8, 1, 64, 32), (28, 4, 128, 16), (16, 8, 256, 16)]
    LENS = [1, 17, 3000, 1333]
    ROWS = (1, 5, 16, 33, 64, 130, 700, 2048)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype, bf16: float = 8e-3) -> None:
    """fp32 to 3e-5 of the largest value; bf16 to its rounding."""
    bound = 3e-5 if dtype == torch.float32 else bf16
    assert not got.isnan().any(), "not every element was written"
    assert float((got.double() - expected.double()).abs().max()) <= bound * float(expected.abs().max())


@each_dtype
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linears_with_adapters_equal_fp32(
    rng: torch.Generator, dtype: torch.dtype, bits: int, shape: Any
) -> None:
    """Rows of three adapters and of none; parts without an adapter; written, and added to what is there."""
    k, splits, bias = shape
    weights = [randn(rng, n, k) * k**-0.5 for n in splits]
    biases = [randn(rng, n) if bias else None for n in splits]
    kernels: Any = Moved(dtype)
    w = kernels.pack_linear(weights, biases, bits)
    exact = weights_of(weights, bits, dtype)
    offset = torch.cat([torch.zeros(n) if b is None else b for n, b in zip(splits, biases, strict=True)])
    some = [None] + [adapter(rng, k, splits, r[: len(splits)]) for r in ((16, 16, 16), (1, 0, 3), (65, 8, 0))]
    packed = [None if pairs is None else pack(kernels, w, pairs) for pairs in some]
    scales = 8e-3 if bits == 16 else 1.2e-2  # of quantized weights are bf16 as well
    for rows in ROWS:
        x = randn(rng, rows, k, dtype=dtype)
        edges = sorted({0, rows // 4, rows // 2, rows // 2 + 1, rows})
        which = [i % 4 for i in range(len(edges) - 1)] if rows > 1 else [1]
        lora = kernels.lora_rows(edges, [packed[i] for i in which])
        expected = x.float() @ exact.T + offset
        for first, last, i in zip(edges, edges[1:], which, strict=False):
            pairs = some[i]
            if pairs is not None:
                expected[first:last] += lora_part(x[first:last], splits, pairs)
        out = torch.empty(rows, sum(splits), dtype=dtype)
        kernels.linear(x, w, out, lora=lora)
        close(out, expected, dtype, scales)
        before = randn(rng, rows, sum(splits))
        added = before.clone()
        kernels.linear(x, w, added, lora=lora, accumulate=True)
        close(added, before + expected, dtype, scales)


@each_dtype
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("window", [0, 20])
def test_attention_equals_fp32(rng: torch.Generator, dtype: torch.dtype, heads: Any, window: int) -> None:
    """Prompts, chunks and decode rows together, on pages in any order; stale bytes are NaN."""
    q_heads, kv_heads, d, block = heads
    results = []
    state = rng.get_state()
    kinds: list[Any] = [Moved(dtype), TorchKernels(torch.float32)]
    for kernels in kinds:
        rng.set_state(state)
        case = attention_case(kernels, rng, LENS, q_heads, kv_heads, d, block, norm=d == 64)
        if kernels.dtype != dtype:
            case["qkv"] = [x.to(dtype).float() for x in case["qkv"]]
        middle = LENS[2] // 2
        attention_step(kernels, case, [(1, 0, 16), (2, 0, middle)], q_heads, window)
        spans = [(0, 0, 1), (1, 16, 17), (2, middle, LENS[2]), (3, 0, LENS[3])]
        results.append(torch.cat(attention_step(kernels, case, spans, q_heads, window)))
    close(results[0], results[1], dtype, bf16=2.5e-2)  # keys and queries are rounded before they meet


@each_dtype
def test_elementwise_operations_equal_fp32(rng: torch.Generator, dtype: torch.dtype) -> None:
    """Norms and gates of any width."""
    kernels, reference = Moved(dtype), TorchKernels(torch.float32)
    for width in (5, 75, 768) if INTERPRET else (5, 75, 768, 4096, 14336):
        x, weight = randn(rng, 9, width) * 3, randn(rng, width)
        gate_up = randn(rng, 9, 2 * width, dtype=dtype) * 4
        got, expected = torch.empty(9, width, dtype=dtype), torch.empty(9, width)
        kernels.rms_norm(x, weight, 1e-6, got)
        reference.rms_norm(x, weight, 1e-6, expected)
        close(got, expected, dtype)
        kernels.silu_mul(gate_up, got)
        reference.silu_mul(gate_up.float(), expected)
        close(got, expected, dtype)


@pytest.mark.parametrize("v", [17, 1000] if INTERPRET else [17, 32001, 128256])
def test_draws_are_those_of_the_reference(rng: torch.Generator, v: int) -> None:
    """Greedy choice exactly; sampled ones but for a boundary between two tokens."""
    kernels, reference = Moved(torch.bfloat16), TorchKernels(torch.bfloat16)
    numbers = np.random.default_rng(rng.initial_seed())
    rows = [
        DrawRow(t, m, p, float(numbers.random()), k)
        for t in (0.0, 0.7, 3.0) for m in (0.0, 0.1) for k in (0, 5) for p in (1.0, 0.6)
    ]  # fmt: skip
    logits = randn(rng, len(rows), v) * 3
    logits[::3, : v // 2] = -torch.inf
    logits[::5] = logits[::5].round()  # ties
    got, expected = kernels.draw(logits, rows), reference.draw(logits.clone(), rows)
    differ = [i for i, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1]]
    assert all(rows[i].temperature > 0 for i in differ)
    assert len(differ) <= 2
    assert not any(torch.isinf(logits[i, token]) for i, token in enumerate(got))
