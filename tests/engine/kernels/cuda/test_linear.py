"""The dense product on plain and quantized weights against fp32, and a row's bits against its company and its tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stoa.engine.kernels.cuda.launch import direct
from stoa.engine.kernels.cuda.linear import (
    CudaLinear,
    Tile,
    Workspace,
    candidates,
    default,
    linear,
    pack_linear,
    row_class,
)
from tests.engine.kernels.cuda.truths import weights_of
from tests.engine.kernels.test_kernels import DTYPES, randn

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
KINDS = [(d, b) for d in DTYPES for b in (16, 8, 4)]

# (k, splits, bias): whole strips, odd everything, narrow parts, wide; several tiles; two and four splits of K
SHAPES: list[tuple[int, tuple[int, ...], bool]] = [
    (64, (64, 32, 32), False),
    (75, (40, 20, 20), True),
    (33, (7,), False),
    (768, (256,), False),
    (128, (300, 300), True),
    (1100, (70,), True),
    (2048, (96, 40), False),
]
QUICK = (SHAPES[1], SHAPES[5])


def close(got: Tensor, expected: Tensor, dtype: torch.dtype, bits: int = 16) -> None:
    """fp32 to 1e-5 of the largest value; bf16 to its rounding, and that of quantized weights' scales."""
    bound = 1e-5 if dtype == torch.float32 else 4e-3 if bits == 16 else 8e-3
    assert float((got.float() - expected).abs().max()) <= bound * float(expected.abs().max())


def run(w: CudaLinear, x: Tensor, tile: Tile | None = None, out: Tensor | None = None, **how: Any) -> Tensor:
    """fp32 out where none is given."""
    out = torch.full((len(x), w.n), torch.nan) if out is None else out
    workspace = Workspace.of([w], len(x), CPU)
    tile = tile or default(w, len(x))
    linear(direct, x.contiguous(), w, out, tile=tile, workspace=workspace, **how)
    assert not workspace.counters.any(), "the next launch finds them zero"
    return out


@pytest.mark.parametrize(
    ("shape", "dtype", "bits"),
    [
        # the interpreter takes seconds for each
        pytest.param(shape, *kind, marks=[] if shape in QUICK else [pytest.mark.slow])
        for shape in SHAPES
        for kind in KINDS
    ],
    ids=str,
)
def test_linear_equals_fp32(dtype: torch.dtype, bits: int, shape: tuple[int, tuple[int, ...], bool]) -> None:
    """Odd sizes, parts with and without bias, deltas for some rows, outputs in both dtypes, added or not."""
    k, splits, bias = shape
    rng = torch.Generator().manual_seed(k)
    weights = [randn(rng, n, k) for n in splits]
    biases = [randn(rng, n) if bias and i != 1 else None for i, n in enumerate(splits)]
    w = pack_linear(weights, biases, bits, dtype, CPU)
    assert (w.k, w.splits) == (k, splits)
    full = torch.cat([torch.zeros(n) if b is None else b for n, b in zip(splits, biases, strict=True)])
    for rows in (1, 70):
        x = randn(rng, rows, k, dtype=dtype)
        product = F.linear(x.float(), weights_of(weights, bits, dtype), full)
        rounded = torch.empty(rows, w.n, dtype=dtype)
        close(run(w, x, out=rounded), product, dtype, bits)
        has = torch.arange(rows + 3, dtype=torch.int32) % 3
        delta = randn(rng, rows + 3, w.n) * 3
        delta[has == 0] = torch.nan  # left by another step
        expected = product + delta[:rows].nan_to_num(0)
        close(run(w, x, delta=delta, has_delta=has), expected, dtype, bits)
        before = randn(rng, rows, w.n) * 3
        linear(
            direct, x, w, added := before.clone(), tile=default(w, rows), delta=delta, has_delta=has,
            accumulate=True, workspace=Workspace.of([w], rows, CPU),
        )  # fmt: skip
        close(added, before + expected, dtype, bits)
        assert torch.equal(run(w, x, after_lora=True), run(w, x))


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [pytest.param(d, b, marks=[] if (d, b) == KINDS[3] else [pytest.mark.slow]) for d, b in KINDS],
    ids=str,
)
def test_a_row_keeps_its_bits_in_any_company_and_any_tile(dtype: torch.dtype, bits: int) -> None:
    """Alone, among 70, among 300, with splits of K by one program or by several, in each candidate's tile."""
    rng = torch.Generator().manual_seed(bits)
    for k, n in ((1100, 130), (200, 70)):
        w = pack_linear([randn(rng, n, k)], [randn(rng, n)], bits, dtype, CPU)
        assert w.k_splits == (2 if k == 1100 else 1)
        x = randn(rng, 300, k, dtype=dtype)
        expected = run(w, x)
        assert torch.equal(run(w, x[:70]), expected[:70])
        for i in (0, 64, 299):
            assert torch.equal(run(w, x[i : i + 1]), expected[i : i + 1])
        tiles = {t for rows in (1, 64, 128, 256, 4096) for t in candidates(w, rows)}
        shapes = {(t.columns, t.rows, inside): t for t in tiles for inside in (t.inside, True)}
        for (columns, rows, inside), t in shapes.items():
            tile = Tile(columns, rows, t.warps, t.stages, inside)
            assert torch.equal(run(w, x[:33], tile), expected[:33]), tile


def test_packing_in_pieces_is_packing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of weights in other dtypes."""
    rng = torch.Generator().manual_seed(0)
    weights = [randn(rng, 50, 200, dtype=torch.bfloat16), randn(rng, 7, 200)]
    for bits in (16, 8, 4):
        whole = pack_linear(weights, [None, None], bits, torch.bfloat16, CPU)
        with monkeypatch.context() as patch:
            patch.setattr("stoa.engine.kernels.cuda.linear._PIECE", 1000)
            pieces = pack_linear(weights, [None, None], bits, torch.bfloat16, CPU)
        assert torch.equal(pieces.weight, whole.weight)
        assert (pieces.scale is None) == (bits == 16)
        if pieces.scale is not None and whole.scale is not None:
            assert torch.equal(pieces.scale, whole.scale)


def test_quantized_weights_take_the_bytes_they_should() -> None:
    """Half and a quarter of bf16, and a scale for 64 of them."""
    weight = torch.randn(256, 1024)
    sizes = {b: pack_linear([weight], [None], b, torch.bfloat16, CPU).nbytes for b in (16, 8, 4)}
    values, scales = 256 * 1024, 256 * 1024 // 64 * 2
    assert sizes == {16: 2 * values, 8: values + scales, 4: values // 2 + scales}


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    "shape", [(4096, 4096), (14336, 4096), (4096, 6144), (4096, 28672), (4096, 128256)], ids=str
)
def test_every_number_of_rows_has_tiles_of_one_kind_of_instruction(bits: int, shape: tuple[int, int]) -> None:
    """At least 64 columns and 16 rows, and splits of K that do not depend on rows nor leave any empty."""
    k, n = shape
    weight = torch.empty(n, k, dtype=torch.bfloat16, device="meta")
    scale = None if bits == 16 else weight
    w = CudaLinear(weight, scale, bits, None, k, (n,))
    assert (w.k_splits - 1) * w.steps_per_split < w.steps <= w.k_splits * w.steps_per_split
    for rows in (1, 16, 17, 64, 65, 200, 257, 1000, 8192, 10**6):
        tiles = candidates(w, rows)
        assert tiles[0] == default(w, rows) == default(w, row_class(rows))
        assert all(t.columns >= 64 and t.rows >= 16 and t.warps in (4, 8) for t in tiles)
        assert len(set(tiles)) == len(tiles)
