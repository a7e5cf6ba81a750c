"""Batched LoRA on a GPU against the torch reference, over ranks, parts, ragged segments and popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoa.engine.kernels.cuda import lora
from stoa.engine.kernels.cuda.device import find_gpu
from stoa.engine.kernels.cuda.launch import direct
from stoa.engine.kernels.cuda.linear import CudaLinear
from stoa.engine.kernels.cuda.segments import CudaAdapter, Segments
from stoa.engine.kernels.interface import LoraPair
from tests.engine.kernels.cuda.truths import lora_part
from tests.engine.kernels.test_kernels import DTYPES, SEGMENTS, adapter, close, randn

pytestmark = pytest.mark.interpreter

DEVICE = find_gpu().device
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES: list[tuple[int, tuple[int, ...]]] = [
    (64, (64, 32, 32)),
    (75, (40, 20, 20)),
    (33, (7,)),
    (1500, (256,)),
    (128, (300, 300)),
]
EXPANDS = (lora.Expand(256, 4, 2), lora.Expand(16, 2, 1))


def plain(k: int, splits: tuple[int, ...]) -> CudaLinear:
    return CudaLinear(torch.empty(sum(splits), k), None, 16, None, k, splits)


def pack(linears: list[CudaLinear], pairs: list[list[LoraPair | None]], dtype: torch.dtype) -> Any:
    """(adapter, memory that must live as long); NaN bytes around: none may get in."""
    size = lora.adapter_nbytes(linears, [[p.a.shape[0] if p else 0 for p in group] for group in pairs], dtype)
    host = torch.full((size,), 0xFF, dtype=torch.uint8)
    memory = torch.full((size + 4096,), 0xFF, dtype=torch.uint8, device=DEVICE)
    lora.lay_out(linears, pairs, dtype, host)
    memory[:size].copy_(host)
    return CudaAdapter(memory.data_ptr(), size), memory


def run(
    x: Tensor, linear: CudaLinear, index: int, starts: list[int], adapters: list[CudaAdapter | None], *,
    out: Tensor | None = None, how: lora.Expand = EXPANDS[0],
) -> Tensor:  # fmt: skip
    """fp32 [T, sum(splits)]; NaN where nothing was written. `out`: is added to."""
    segments = Segments(starts, adapters).sent(DEVICE)
    h = torch.full((lora.pieces(linear.k)[0], len(x), 1700), torch.nan, device=DEVICE)
    delta = torch.full((len(x), sum(linear.splits)), torch.nan, device=DEVICE) if out is None else out
    x = x.to(DEVICE)
    lora.shrink(direct, x, len(linear.splits), index, segments, h)
    lora.expand(
        direct, h, x.dtype, linear.k, linear.splits, index, segments, delta, how, accumulate=out is not None
    )
    return delta.cpu()


@each_dtype
@pytest.mark.parametrize(
    ("shape", "segments"),
    [
        # the interpreter takes a second for each
        pytest.param(shape, s, marks=[] if i == j or shape == SHAPES[1] else [pytest.mark.slow])
        for i, shape in enumerate(SHAPES)
        for j, s in enumerate(SEGMENTS)
    ],
    ids=str,
)
def test_every_row_gets_its_own_adapter(dtype: torch.dtype, shape: Any, segments: Any) -> None:
    """Any mix of ranks, absent parts and odd sizes; what rows without an adapter hold is left alone."""
    (k, splits), (starts, ranks) = shape, segments
    rng = torch.Generator().manual_seed(k)
    linear = plain(k, splits)
    x = randn(rng, starts[-1], k, dtype=dtype)
    pairs = [None if r is None else adapter(rng, k, splits, r[: len(splits)]) for r in ranks]
    packed = [None if p is None else pack([linear], [p], dtype) for p in pairs]
    adapters = [p[0] if p else None for p in packed]
    base = randn(rng, len(x), sum(splits))
    for how in EXPANDS:
        got = run(x, linear, 0, starts, adapters, how=how)
        added = run(x, linear, 0, starts, adapters, out=base.clone().to(DEVICE), how=how)
        for g, pair in enumerate(pairs):
            rows = slice(starts[g], starts[g + 1])
            if pair is None:
                assert got[rows].isnan().all()
                assert torch.equal(added[rows], base[rows])
            else:
                expected = lora_part(x[rows], linear.splits, pair)
                close(got[rows], expected, dtype)
                close(added[rows], expected + base[rows], dtype)


@each_dtype
def test_linears_of_one_adapter_lie_side_by_side(dtype: torch.dtype) -> None:
    """Each linear of the model finds its own matrices, also behind one that the adapter leaves alone."""
    rng = torch.Generator().manual_seed(5)
    linears = [plain(64, (32, 16, 16)), plain(32, (64,)), plain(64, (48, 48)), plain(48, (64,))]
    ranks = [(3, 0, 9), (0,), (16, 4), (40,)]
    pairs = [adapter(rng, w.k, w.splits, r) for w, r in zip(linears, ranks, strict=True)]
    packed, _memory = pack(linears, pairs, dtype)
    for index, (linear, pair) in enumerate(zip(linears, pairs, strict=True)):
        x = randn(rng, 5, linear.k, dtype=dtype)
        close(run(x, linear, index, [0, 5], [packed]), lora_part(x, linear.splits, pair), dtype)


@each_dtype
@pytest.mark.parametrize(
    "popularity", ["zipf", *(pytest.param(p, marks=pytest.mark.slow) for p in ("identical", "distinct"))]
)
def test_a_row_keeps_its_bits_in_any_company(dtype: torch.dtype, popularity: str) -> None:
    """Alone, in a prompt, among others' rows, whatever their adapters' ranks and however columns are cut."""
    rng = torch.Generator().manual_seed(3)
    splits, k, rows = (80, 48, 40), 1100, 40
    linear = plain(k, splits)
    kept = [
        pack([linear], [adapter(rng, k, splits, r)], dtype) for r in ((16, 16, 16), (5, 0, 1), (70, 8, 2))
    ]
    some = [a for a, _ in kept]
    x = randn(rng, rows, k, dtype=dtype)
    which = {
        "identical": np.zeros(rows, dtype=int),
        "distinct": np.arange(rows) % 3,
        "zipf": np.minimum(np.random.default_rng(0).zipf(1.5, rows) - 1, 2),
    }[popularity]
    order = np.argsort(which, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(which[order])) + 1).tolist(), rows]
    together = run(
        x[order].contiguous(), linear, 0, edges, [some[which[order[e]]] for e in edges[:-1]], how=EXPANDS[1]
    )
    for at, i in list(enumerate(order))[::7]:
        alone = run(x[i : i + 1].contiguous(), linear, 0, [0, 1], [some[which[i]]])
        assert torch.equal(alone[0], together[at])


def test_an_adapter_takes_the_bytes_it_has() -> None:
    """A rank of one takes a sixteenth of a rank of sixteen, beside the records."""
    linears = [plain(4096, (4096, 1024, 1024))] * 4
    records = len(linears) * 64

    def size(rank: int) -> int:
        return lora.adapter_nbytes(linears, [(rank, rank, rank)] * 4, torch.bfloat16) - records

    assert size(16) == 16 * size(1) == 4 * 16 * 2 * (3 * 4096 + 6144)


def test_padding_tiles_leave_no_trace() -> None:
    """A graph's tiles beyond the step's own are skipped."""
    rng = torch.Generator().manual_seed(1)
    linear = plain(64, (32,))
    pair = adapter(rng, 64, (32,), (4,))
    packed, _memory = pack([linear], [pair], torch.float32)
    x = randn(rng, 4, 64)
    segments = Segments([0, 2, 4], [packed, None])
    sent = segments.sent(DEVICE)
    assert sent.adapted.tolist() == [1, 1, 0, 0]
    padded = torch.cat((sent.tiles, torch.zeros(3, 3, dtype=torch.int64, device=DEVICE)))
    object.__setattr__(sent, "tiles", padded)
    object.__setattr__(sent, "num_tiles", 4)
    h = torch.full((1, 4, 16), torch.nan, device=DEVICE)
    out = torch.full((4, 32), torch.nan, device=DEVICE)
    lora.shrink(direct, x.to(DEVICE), 1, 0, sent, h)
    lora.expand(direct, h, x.dtype, 64, (32,), 0, sent, out, EXPANDS[0], accumulate=False)
    close(out[:2].cpu(), lora_part(x[:2], linear.splits, pair), torch.float32)
    assert out[2:].isnan().all()
