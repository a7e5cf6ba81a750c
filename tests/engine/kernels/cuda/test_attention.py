"""Paged attention against the reference; and a row's bits against cuts, company, padding and who merges its splits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoa.engine.kernels.cuda.attention import (
    attention,
    parts_of,
    stages,
    tile_keys,
    tile_rows,
    walkers,
    workspace,
)
from stoa.engine.kernels.cuda.launch import direct
from stoa.engine.kernels.cuda.rope import rope_append
from stoa.engine.kernels.cuda.step import DeviceRows, upload_rows
from stoa.engine.kernels.interface import AttentionRows, KVLayout
from stoa.engine.kernels.reference import TorchKernels
from tests.engine.kernels.test_kernels import DTYPES, HEADS, attention_case, attention_step, close

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
SPLIT = 64  # small, so that short contexts have many
WALK, SHARE, ALL = 0, 3, 1000  # multiprocessors that make one program, few, or one a split


class Kernels:
    """What `attention_step` asks of kernels. `multiprocessors` decides who merges; `padding`: rows, tiles and splits
    more than there are, as a graph has them."""

    def __init__(
        self,
        dtype: torch.dtype,
        q_heads: int,
        multiprocessors: int,
        padding: int = 0,
        parts: int | None = None,
    ) -> None:
        self.dtype, self.q_heads, self.multiprocessors = dtype, q_heads, multiprocessors
        self.padding, self.parts = padding, parts

    def kv_layout(self, *shape: int) -> KVLayout:
        return TorchKernels(self.dtype).kv_layout(*shape)

    def rows(self, rows: AttentionRows, layout: KVLayout) -> DeviceRows:
        sent = upload_rows(rows, tile_rows(self.q_heads // layout.kv_heads), layout.block_size, CPU)
        more, splits = self.padding, -(-int(rows.context_len.max()) // SPLIT)

        def pad(x: Tensor, value: int) -> Tensor:
            return torch.cat((x, x.new_full((more, *x.shape[1:]), value)))

        return replace(
            sent, count=sent.count + more, num_tiles=sent.num_tiles + more, num_splits=splits + more,
            positions=pad(sent.positions, 0), slots=pad(sent.slots, -1), tiles=pad(sent.tiles, 0),
        )  # fmt: skip

    def _pad(self, x: Tensor) -> Tensor:
        return torch.cat((x, x.new_full((self.padding, x.shape[1]), torch.nan)))

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: AttentionRows,
        **norms: Any,
    ) -> None:  # fmt: skip
        out = self._pad(q_out)
        rope_append(direct, self._pad(qkv), out, rope, kv, layout, layer, self.rows(rows, layout), **norms)
        q_out.copy_(out[: len(q_out)])

    def attention(
        self,
        q: Tensor,
        out: Tensor,
        kv: Tensor,
        layout: KVLayout,
        layer: int,
        rows: AttentionRows,
        **how: Any,
    ) -> None:
        sent, padded = self.rows(rows, layout), self._pad(out)
        parts = self.parts
        if parts is None:
            parts = parts_of(sent.count, self.q_heads, sent.num_splits, how["window"], SPLIT)
        scratch = workspace(parts, layout.head_dim, self.multiprocessors, CPU)
        scratch.sums.fill_(torch.nan)
        scratch.peaks.fill_(torch.nan)
        attention(direct, self._pad(q), padded, kv, layout, layer, sent, scratch=scratch, split=SPLIT, **how)
        out.copy_(padded[: len(out)])


def cases(quick: list[tuple[Any, ...]], *choices: Iterable[Any]) -> list[Any]:
    """All combinations; those that are not `quick` are slow ones: the interpreter takes seconds for each."""
    return [
        pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow])
        for case in itertools.product(*choices)
    ]


ALL_HEADS = [*HEADS, (5, 1, 80, 48), (2, 2, 96, 64), (70, 1, 16, 16)]
QUICK = [((4, 2, 16, 16), 70, torch.bfloat16), ((5, 1, 80, 48), 0, torch.float32)]  # tiles of 64, of 32 keys


@pytest.mark.parametrize(("heads", "window", "dtype"), cases(QUICK, ALL_HEADS, (0, 70), DTYPES), ids=str)
def test_attention_equals_the_reference(dtype: torch.dtype, heads: Any, window: int) -> None:
    """Prompts and single tokens together, contexts of one to four splits, grouped heads, windows, head norms, pages in
    any order."""
    q_heads, kv_heads, d, block = heads
    old = 190 if q_heads < 70 else 6
    lens = [1, 17, 40, old + 13]
    results = []
    kernels = Kernels(dtype, q_heads, SHARE)
    for each in (kernels, TorchKernels(dtype)):
        rng = torch.Generator().manual_seed(d)
        case = attention_case(each, rng, lens, q_heads, kv_heads, d, block, norm=d == 64)  # type: ignore[arg-type]
        spans = [(1, 0, 16), (2, 0, 30), (3, 0, old)]
        attention_step(each, case, spans, q_heads, window)  # type: ignore[arg-type]
        spans = [(0, 0, 1), (1, 16, 17), (2, 30, 40), (3, old, old + 13)]
        results.append(torch.cat(attention_step(each, case, spans, q_heads, window)))  # type: ignore[arg-type]
    close(results[0], results[1], dtype)


@pytest.mark.parametrize(("window", "dtype"), cases([(70, torch.bfloat16)], (0, 70), DTYPES), ids=str)
def test_a_row_keeps_its_bits_however_its_prompt_is_cut(dtype: torch.dtype, window: int) -> None:
    """At once or in chunks, alone or beside others, padded or not, splits merged by one program or from memory, and
    with memory for a part of them: every row has the same bits."""

    def run(cuts: list[int], beside: bool, kernels: Kernels) -> Tensor:
        rng = torch.Generator().manual_seed(1)
        case = attention_case(kernels, rng, [140, 20], 2, 1, 16, 16, norm=False)  # type: ignore[arg-type]
        parts = []
        for first, last in itertools.pairwise(cuts):
            spans = [(0, first, last)] + ([(1, 0, 20)] if beside else [])
            if first % 2:
                spans.reverse()
            done = attention_step(kernels, case, spans, 2, window)  # type: ignore[arg-type]
            parts.append(done[spans.index((0, first, last))])
        return torch.cat(parts)

    whole = run([0, 140], False, Kernels(dtype, 2, WALK))
    for cuts, beside, kernels in (
        ([0, 140], True, Kernels(dtype, 2, SHARE, padding=3)),
        ([0, 63, 64, 66, 140], True, Kernels(dtype, 2, ALL, padding=1)),
        ([0, 7, 64, 130, 140], False, Kernels(dtype, 2, ALL, parts=2 * 66)),
    ):
        assert torch.equal(run(cuts, beside, kernels), whole)


def test_keys_outside_a_window_are_not_read() -> None:
    """Blocks that a window has left behind may hold anything by now."""
    kernels, q_heads, window = Kernels(torch.float32, 4, SHARE), 4, 20
    outs = []
    for stale in (False, True):
        case = attention_case(kernels, torch.Generator().manual_seed(2), [150], 4, 2, 16, 16, norm=False)  # type: ignore[arg-type]
        attention_step(kernels, case, [(0, 0, 148)], q_heads, window)  # type: ignore[arg-type]
        if stale:
            pages = case["kv"].view(-1, case["layout"].page_bytes)
            pages[case["tables"][0][: (148 - window) // 16].astype(np.int64)] = 0xFF
        outs.append(attention_step(kernels, case, [(0, 148, 150)], q_heads, window)[0])  # type: ignore[arg-type]
    assert torch.equal(outs[0], outs[1])
    assert bool(outs[0].isfinite().all())


def test_a_tile_holds_the_heads_of_a_group() -> None:
    assert [tile_rows(groups) for groups in (1, 4, 6, 64, 71)] == [64, 16, 10, 1, 1]
    assert parts_of(3, 8, 40) == 960
    assert [parts_of(1, 1, 40, window, 512) for window in (1, 2, 513, 514, 1025, 1026)] == [1, 2, 2, 3, 3, 4]


def test_programs_share_splits_where_tiles_are_few_or_contexts_long() -> None:
    assert [walkers(tiles, 16, 132) for tiles in (1, 32, 64)] == [16, 16, 8]
    assert [walkers(8192, splits, 132) for splits in (1, 4, 5, 16, 64, 1000)] == [1, 1, 2, 4, 8, 8]
    assert walkers(1, 1, 132) == 1


def test_tiles_of_keys_are_loaded_ahead() -> None:
    """As many as the smallest GPUs' shared memory holds beside queries, scores and weights; fp32 is not for speed."""
    shapes = [(32, 2), (64, 2), (128, 2), (256, 2), (128, 4), (256, 4)]
    assert [(tile_keys(*shape), stages(*shape)) for shape in shapes] == [
        (64, 5), (64, 5), (64, 3), (32, 2), (32, 2), (16, 1)
    ]  # fmt: skip
