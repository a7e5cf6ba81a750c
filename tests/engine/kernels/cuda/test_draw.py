"""Draws against the reference: greedy rows, filters alone and together, odd logits, and a row's company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stoa.engine.kernels.cuda.draw import draw
from stoa.engine.kernels.cuda.launch import direct
from stoa.engine.kernels.interface import DrawRow
from stoa.engine.kernels.reference import TorchKernels

pytestmark = pytest.mark.interpreter

reference = TorchKernels(torch.float32)


@pytest.mark.parametrize("v", [17, 1000, 20001])
def test_draws_are_those_of_the_reference(v: int) -> None:
    """Temperature and filters, alone and together; fp32 weights may differ from fp64 ones at a boundary only."""
    rng = np.random.default_rng(v)
    filters = [
        {"min_p": m, "top_k": k, "top_p": p}
        for m in (0.0, 0.1) for k in (0, 1, 5, v + 3) for p in (1.0, 0.9, 0.3)
    ]  # fmt: skip
    rows = [
        DrawRow(temperature=t, uniform=float(rng.random()), **f)  # type: ignore[arg-type]
        for t in (0.0, 0.3, 5.0)
        for f in (filters if t or v < 20000 else filters[:3])
    ]
    if v > 20000:
        rows = rows[::2]
    logits = torch.from_numpy(rng.normal(0, 3, (len(rows), v)).astype(np.float32))
    logits[::3, : v // 2] = -torch.inf
    logits[::5] = logits[::5].round()  # ties
    got, expected = draw(direct, logits, rows), reference.draw(logits, rows)
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1
    assert not any(torch.isinf(logits[i, token]) for i, token in enumerate(got))
    alone = [draw(direct, logits[i : i + 1], rows[i : i + 1])[0] for i in range(0, len(rows), 7)]
    assert alone == got[::7]


@pytest.mark.parametrize("v", [5, 4097])
def test_the_lowest_among_the_largest_is_taken(v: int) -> None:
    """Ties across pieces of a row; 0 and -0 are equal; what is not a number is never taken."""
    logits = torch.zeros(4, v)
    logits[1] = -0.0
    logits[1, 3:] = 0.0
    logits[2, 0], logits[2, 4], logits[2, -1] = torch.nan, 7.0, 7.0
    logits[3] = -torch.inf
    assert draw(direct, logits, [DrawRow()] * 4) == [0, 0, 4, 0]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_draw_keeps_away_from_what_is_no_number() -> None:
    """NaN, -inf and +inf among logits that are drawn from; rows of nothing; a temperature next to nothing."""
    logits = torch.zeros(6, 40)
    logits[0, ::2] = torch.nan
    logits[1, 1:] = -torch.inf
    logits[2, 11] = torch.inf
    logits[3] = torch.nan
    logits[4, 9] = 1e-3
    logits[5, 39] = -200.0
    hot = DrawRow(temperature=2.0, uniform=0.999999, top_k=30, top_p=0.99)
    rows = [
        hot,
        hot,
        hot._replace(min_p=0.5),
        hot,
        DrawRow(1e-30, uniform=0.9),
        DrawRow(1.0, uniform=1 - 2**-53),
    ]
    got = draw(direct, logits, rows)
    assert got[0] % 2 == 1
    assert got[1:] == [0, 11, 0, 9, 38]


def test_ties_at_a_filter_s_edge_stay_in() -> None:
    """0 and -0 are one value for top-k and top-p as well."""
    logits = torch.full((6, 50), -5.0)
    logits[:, 10:20] = 0.0
    logits[:, 15:20] = -0.0
    rows = [
        DrawRow(1.0, uniform=u, **f) for u in (0.0, 0.55, 0.999999) for f in ({"top_k": 1}, {"top_p": 0.05})
    ]  # type: ignore[arg-type]
    assert draw(direct, logits, rows) == reference.draw(logits, rows) == [10, 10, 15, 15, 19, 19]
