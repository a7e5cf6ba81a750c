"""One step's rows as the kernels want them, made from the sequences that run in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, Kernels, PackedAdapter
from stoa.engine.sequence import Sequence


@dataclass(frozen=True)
class Batch:
    """Rows of one sequence are adjacent, and sequences of one adapter are adjacent.

    `sampled` are the sequences that get tokens from this step: one from their last row, and one from each row
    before it that a draft follows (those rows are in `sample_rows`, `sample_counts` of them for each).
    """

    seqs: list[Sequence]
    counts: list[int]
    starts: list[int]  # [S + 1] first row of each sequence
    token_ids: Tensor  # [T] int64
    rows: AttentionRows
    lora: Any
    sampled: list[Sequence]
    sample_counts: list[int]
    sample_rows: Tensor  # [n] int64
    sample_lora: Any


def build_batch(
    plan: Mapping[Sequence, int], kernels: Kernels, packed: Callable[[str], PackedAdapter | None]
) -> Batch:
    seqs = sorted(plan, key=lambda s: s.adapter_id or "")
    counts = [plan[s] for s in seqs]
    starts = [0, *np.cumsum(counts).tolist()]
    tokens: list[int] = []
    positions: list[int] = []
    sampled: list[Sequence] = []
    sample_counts: list[int] = []
    sample_rows: list[int] = []
    for seq, count, end in zip(seqs, counts, starts[1:], strict=True):
        first, last = seq.num_computed, seq.num_computed + count
        tokens += seq.tokens[first:last] + seq.drafts
        positions += range(first, last)
        if last == len(seq.tokens) + len(seq.drafts) and seq.request.pooling is None:
            sampled.append(seq)
            sample_counts.append(1 + len(seq.drafts))
            sample_rows += range(end - sample_counts[-1], end)
    return Batch(
        seqs=seqs,
        counts=counts,
        starts=starts,
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        rows=_attention_rows(seqs, counts, starts, positions),
        lora=_lora_rows(kernels, packed, seqs, counts),
        sampled=sampled,
        sample_counts=sample_counts,
        sample_rows=torch.tensor(sample_rows, dtype=torch.int64),
        sample_lora=_lora_rows(kernels, packed, sampled, sample_counts),
    )


def _attention_rows(
    seqs: list[Sequence], counts: list[int], starts: list[int], positions: list[int]
) -> AttentionRows:
    table = np.zeros((len(seqs), max(len(s.pages) for s in seqs)), dtype=np.int32)
    for i, seq in enumerate(seqs):
        n = len(seq.pages)
        table[i, :n] = seq.page_ids[:n]
    bs = seqs[0].block_size
    at = np.asarray(positions, dtype=np.int32)
    pages = table[np.repeat(np.arange(len(seqs)), counts), at // bs].astype(np.int64)
    return AttentionRows(
        query_start=np.asarray(starts, dtype=np.int32),
        context_len=np.asarray(
            [s.num_computed + c for s, c in zip(seqs, counts, strict=True)], dtype=np.int32
        ),
        block_table=table,
        positions=at,
        slots=pages * bs + at % bs,
    )


def _lora_rows(
    kernels: Kernels,
    packed: Callable[[str], PackedAdapter | None],
    seqs: list[Sequence],
    counts: list[int],
) -> Any:
    """One segment per run of equal adapters; None if no row has one."""
    starts = [0]
    adapters: list[PackedAdapter | None] = []
    current: str | None = None
    for seq, count in zip(seqs, counts, strict=True):
        if adapters and seq.adapter_id == current:
            starts[-1] += count
            continue
        current = seq.adapter_id
        adapters.append(packed(current) if current is not None else None)
        starts.append(starts[-1] + count)
    return kernels.lora_rows(starts, adapters) if any(a is not None for a in adapters) else None
