"""Every path this machine has, in both dtypes, against the torch reference; and a row's bits against its company."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoa.engine.kernels import available_isas, load_kernels
from stoa.engine.kernels.interface import AttentionRows, DrawRow, Kernels, LoraPair
from stoa.engine.kernels.reference import TorchKernels

DTYPES = (torch.float32, torch.bfloat16)
PATHS = [(isa, dtype) for isa in available_isas() for dtype in DTYPES]
each_path = pytest.mark.parametrize(
    ("isa", "dtype"), PATHS, ids=[f"{isa}-{str(d).removeprefix('torch.')}" for isa, d in PATHS]
)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """fp32 to 1e-5 of the largest value; bf16 to its rounding."""
    scale = float(expected.abs().max()) + 1e-6
    bound = 2e-5 if dtype == torch.float32 else 1.2e-2
    assert float((got.float() - expected.float()).abs().max()) <= bound * scale


def randn(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng).to(dtype)


def adapter(
    rng: torch.Generator, k: int, splits: tuple[int, ...], ranks: tuple[int, ...]
) -> list[LoraPair | None]:
    return [
        LoraPair(randn(rng, r, k) * 0.3, randn(rng, n, r) * 0.3, 0.7 + 0.1 * r % 1) if r else None
        for n, r in zip(splits, ranks, strict=True)
    ]


_pools: list[Tensor] = []  # pool memory belongs to the caller and must outlive the adapter


def pack(kernels: Kernels, linear: Any, pairs: list[LoraPair | None]) -> Any:
    ranks = [p.a.shape[0] if p else 0 for p in pairs]
    size = kernels.adapter_nbytes([linear], [ranks])
    dst = torch.full((size + 4096,), 0xFF, dtype=torch.uint8)  # NaN bytes around: none may get in
    _pools.append(dst)
    return kernels.stage_adapter([linear], [pairs])(dst[:size])


# (k, splits, bias): whole strips, odd everything, narrow parts, wide
SHAPES: list[tuple[int, tuple[int, ...], bool]] = [
    (64, (64, 32, 32), False),
    (75, (40, 20, 20), True),
    (33, (7,), False),
    (768, (256,), False),
    (128, (300, 300), True),
]
# starts of segments and the ranks of each one's parts (None: no adapter)
SEGMENTS: list[tuple[list[int], list[tuple[int, ...] | None]]] = [
    ([0, 1], [(16, 16, 16)]),
    ([0, 1, 2, 5, 6], [(1, 0, 3), None, (16, 8, 4), (33, 0, 1)]),
    ([0, 37, 38, 70], [(8, 8, 8), (256, 5, 0), None]),
    ([0, 3, 50], [None, (0, 0, 64)]),
]


@each_path
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("segments", SEGMENTS, ids=lambda s: str(s[0]))
def test_linear_with_adapters_equals_the_reference(
    isa: str, dtype: torch.dtype, bits: int, shape: Any, segments: Any
) -> None:
    """Any mix of adapters, ranks, absent parts and odd sizes, on plain and quantized weights."""
    k, splits, bias = shape
    starts, ranks = segments
    rng = torch.Generator().manual_seed(k)
    weights = [randn(rng, n, k) for n in splits]
    biases = [randn(rng, n) if bias else None for n in splits]
    x = randn(rng, starts[-1], k, dtype=dtype)
    pairs = [None if r is None else adapter(rng, k, splits, r[: len(splits)]) for r in ranks]
    results = []
    for kernels in (load_kernels(dtype, isa=isa), TorchKernels(dtype)):
        linear = kernels.pack_linear(weights, biases, bits)
        packed = [None if p is None else pack(kernels, linear, p) for p in pairs]
        lora = kernels.lora_rows(starts, packed)
        out = torch.empty(len(x), sum(splits), dtype=dtype)
        kernels.linear(x, linear, out, lora=lora)
        added = torch.ones(len(x), sum(splits))
        kernels.linear(x, linear, added, lora=lora, accumulate=True)
        results.append((out, added))
    close(results[0][0], results[1][0], dtype)
    close(results[0][1], results[1][1], dtype)


@each_path
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_row_of_a_linear_keeps_its_bits_in_any_company(isa: str, dtype: torch.dtype, bits: int) -> None:
    """Alone, first, last, in a crowd, in another order: the same bits, with and without an adapter."""
    rng = torch.Generator().manual_seed(3)
    kernels = load_kernels(dtype, isa=isa)
    splits = (80, 48, 40)
    linear = kernels.pack_linear([randn(rng, n, 200) for n in splits], [None] * 3, bits)
    some = [
        pack(kernels, linear, adapter(rng, 200, splits, r)) for r in ((16, 16, 16), (5, 0, 1), (40, 8, 2))
    ]
    rows = randn(rng, 70, 200, dtype=dtype)
    which = [None, *some]

    def run(order: list[int]) -> dict[int, Tensor]:
        """Rows in `order`, row i on adapter i % 4; adjacent equal adapters make a segment."""
        starts, adapters = [0], []
        for at, i in enumerate(order):
            if not adapters or adapters[-1] is not which[i % 4]:
                adapters.append(which[i % 4])
                starts.append(at)
            starts[-1] = at + 1
        out = torch.empty(len(order), sum(splits), dtype=dtype)
        kernels.linear(rows[order].contiguous(), linear, out, lora=kernels.lora_rows(starts, adapters))
        return dict(zip(order, out, strict=True))

    alone = {i: run([i])[i] for i in range(70)}
    by_adapter = sorted(range(70), key=lambda i: i % 4)
    for order in (list(range(70)), list(range(69, -1, -1)), by_adapter, by_adapter[3:30], [5, 1, 9]):
        for i, out in run(order).items():
            assert torch.equal(out, alone[i]), i


def attention_case(
    kernels: Kernels,
    rng: torch.Generator,
    lens: list[int],
    q_heads: int,
    kv_heads: int,
    d: int,
    block: int,
    norm: bool,
) -> dict[str, Any]:
    layout = kernels.kv_layout(2, kv_heads, d, block)
    pages = [-(-n // block) for n in lens]
    kv = torch.full((sum(pages) * layout.page_bytes + 64,), 0xFF, dtype=torch.uint8)  # stale bytes are NaN
    order = np.random.default_rng(0).permutation(sum(pages)).astype(np.int32)
    tables = np.split(order, np.cumsum(pages)[:-1])
    return {
        "layout": layout,
        "kv": kv[: sum(pages) * layout.page_bytes],
        "tables": tables,
        "qkv": [randn(rng, n, (q_heads + 2 * kv_heads) * d, dtype=kernels.dtype) for n in lens],
        "norms": (randn(rng, d), randn(rng, d)) if norm else (None, None),
        "rope": randn(rng, max(lens), d),
    }


def attention_step(
    kernels: Kernels, case: dict[str, Any], spans: list[tuple[int, int, int]], q_heads: int, window: int
) -> list[Tensor]:
    """Appends and attends rows first:last of each sequence of `spans`; returns each one's output."""
    layout, block = case["layout"], case["layout"].block_size
    widest = max(len(case["tables"][s]) for s, _, _ in spans)
    table = np.zeros((len(spans), widest), dtype=np.int32)
    positions, slots, qkv = [], [], []
    for i, (s, first, last) in enumerate(spans):
        pages = case["tables"][s]
        table[i, : len(pages)] = pages
        at = np.arange(first, last)
        positions.append(at)
        slots.append(pages[at // block].astype(np.int64) * block + at % block)
        qkv.append(case["qkv"][s][first:last])
    counts = [last - first for _, first, last in spans]
    rows = AttentionRows(
        query_start=np.cumsum([0, *counts]).astype(np.int32),
        context_len=np.asarray([last for _, _, last in spans], dtype=np.int32),
        block_table=table,
        positions=np.concatenate(positions).astype(np.int32),
        slots=np.concatenate(slots),
    )
    q = torch.empty(sum(counts), q_heads * layout.head_dim, dtype=kernels.dtype)
    out = torch.empty_like(q)
    q_norm, k_norm = case["norms"]
    kernels.rope_append(
        torch.cat(qkv), q, case["rope"], case["kv"], layout, 1, rows, q_norm=q_norm, k_norm=k_norm, eps=1e-5
    )
    kernels.attention(q, out, case["kv"], layout, 1, rows, scale=layout.head_dim**-0.5, window=window)
    return list(out.split(counts))


HEADS = [(4, 2, 16, 16), (3, 3, 10, 16), (8, 1, 64, 32), (12, 2, 128, 16)]


@each_path
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("window", [0, 5, 20])
def test_attention_equals_the_reference(isa: str, dtype: torch.dtype, heads: Any, window: int) -> None:
    """Prompts and decode rows together, grouped heads, sliding windows, head norms, pages in any order."""
    q_heads, kv_heads, d, block = heads
    lens = [1, 17, 50, 33]
    results = []
    for kernels in (load_kernels(dtype, isa=isa), TorchKernels(dtype)):
        rng = torch.Generator().manual_seed(d)
        case = attention_case(kernels, rng, lens, q_heads, kv_heads, d, block, norm=d == 64)
        attention_step(kernels, case, [(1, 0, 16), (2, 0, 30)], q_heads, window)
        spans = [(0, 0, 1), (1, 16, 17), (2, 30, 50), (3, 0, 33)]
        results.append(torch.cat(attention_step(kernels, case, spans, q_heads, window)))
    close(results[0], results[1], dtype)


@each_path
@pytest.mark.parametrize("window", [0, 20])
def test_attention_keeps_its_bits_however_a_prompt_is_cut(isa: str, dtype: torch.dtype, window: int) -> None:
    """At once, token by token, in odd chunks, beside others: every row has the same bits."""
    kernels = load_kernels(dtype, isa=isa)

    def run(cuts: list[int], beside: bool) -> Tensor:
        rng = torch.Generator().manual_seed(1)
        case = attention_case(kernels, rng, [60, 40], 6, 2, 32, 16, norm=False)
        parts = []
        for first, last in itertools.pairwise(cuts):
            spans = [(0, first, last)] + ([(1, 0, 40)] if beside else [])
            parts.append(attention_step(kernels, case, spans, 6, window)[0])
        return torch.cat(parts)

    whole = run([0, 60], beside=False)
    for cuts in (list(range(61)), [0, 7, 16, 33, 60], [0, 59, 60]):
        assert torch.equal(run(cuts, beside=True), whole)


@each_path
def test_elementwise_operations_equal_the_reference(isa: str, dtype: torch.dtype) -> None:
    """RMSNorm, SiLU gate and the largest logit on odd widths; a row's bits do not depend on the others."""
    rng = torch.Generator().manual_seed(0)
    kernels, reference = load_kernels(dtype, isa=isa), TorchKernels(dtype)
    for width in (5, 16, 75, 768):
        x, weight, gate_up = (
            randn(rng, 9, width) * 3,
            randn(rng, width),
            randn(rng, 9, 2 * width, dtype=dtype) * 8,
        )
        got, alone, expected = (torch.empty(n, width, dtype=dtype) for n in (9, 1, 9))
        kernels.rms_norm(x, weight, 1e-6, got)
        reference.rms_norm(x, weight, 1e-6, expected)
        kernels.rms_norm(x[4:5].contiguous(), weight, 1e-6, alone)
        close(got, expected, dtype)
        assert torch.equal(got[4:5], alone)
        kernels.silu_mul(gate_up, got)
        reference.silu_mul(gate_up, expected)
        kernels.silu_mul(gate_up[4:5].contiguous(), alone)
        close(got, expected, dtype)
        assert torch.equal(got[4:5], alone)
        ties = randn(rng, 9, width).round()
        greedy = [DrawRow()] * len(ties)
        assert kernels.draw(ties, greedy) == reference.draw(ties, greedy)


@each_path
@pytest.mark.parametrize("v", [17, 1000, 32001])
def test_draws_are_those_of_the_reference(isa: str, dtype: torch.dtype, v: int) -> None:
    """Temperature and filters, alone and together; fp32 sums may differ from fp64 ones at a boundary only."""
    rng = np.random.default_rng(v)
    kernels, reference = load_kernels(dtype, isa=isa), TorchKernels(dtype)
    filters = [
        {"min_p": m, "top_k": k, "top_p": p}
        for m in (0.0, 0.1) for k in (0, 1, 5, v + 3) for p in (1.0, 0.9, 0.3)
    ]  # fmt: skip
    rows = [
        DrawRow(temperature=t, uniform=float(rng.random()), **f)  # type: ignore[arg-type]
        for t in (0.0, 0.3, 1.0, 5.0)
        for f in filters
    ]
    logits = torch.from_numpy(rng.normal(0, 3, (len(rows), v)).astype(np.float32))
    logits[::3, : v // 2] = -torch.inf
    logits[::5] = logits[::5].round()  # ties
    got, expected = kernels.draw(logits.clone(), rows), reference.draw(logits.clone(), rows)
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 2
    assert not any(torch.isinf(logits[i, token]) for i, token in enumerate(got))
    alone = [kernels.draw(logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(0, len(rows), 7)]
    assert alone == got[::7]
