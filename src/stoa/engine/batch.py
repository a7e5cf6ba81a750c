"""One step's rows as the kernels want them, made from the sequences that run in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, Kernels, PackedAdapter
from stoa.engine.sequence import Sequence


class Segments(NamedTuple):
    """Rows starts[g]:starts[g + 1] use adapter adapters[g], None: none."""

    starts: list[int]
    adapters: list[str | None]


@dataclass(frozen=True)
class Batch:
    """Rows of one sequence are adjacent, and sequences of one adapter are adjacent.

    `sampled` are the sequences that get tokens from this step: one from their last row, and one from each row
    before it that a draft follows (those rows are in `sample_rows`, `sample_counts` of them for each).
    """

    seqs: list[Sequence]
    counts: list[int]
    starts: list[int]  # [S + 1] first row of each sequence
    tokens: list[int]  # [T]
    token_ids: Tensor  # the same, int64
    rows: AttentionRows
    segments: Segments
    lora: Any  # `segments` as the kernels want them
    sampled: list[Sequence]
    sample_counts: list[int]
    samples: list[int]  # [n]
    sample_rows: Tensor  # the same, int64
    sample_segments: Segments
    sample_lora: Any


def numbers_on(device: torch.device, values: list[int]) -> Tensor:
    """int64; on their way to a GPU when this returns."""
    host = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


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
    samples: list[int] = []
    for seq, count, end in zip(seqs, counts, starts[1:], strict=True):
        first, last = seq.num_computed, seq.num_computed + count
        tokens += seq.tokens[first:last] + seq.drafts
        positions += range(first, last)
        if last == len(seq.tokens) + len(seq.drafts) and seq.request.pooling is None:
            sampled.append(seq)
            sample_counts.append(1 + len(seq.drafts))
            samples += range(end - sample_counts[-1], end)
    segments, sample_segments = _segments(seqs, counts), _segments(sampled, sample_counts)
    return Batch(
        seqs=seqs,
        counts=counts,
        starts=starts,
        tokens=tokens,
        token_ids=numbers_on(kernels.device, tokens),
        rows=_attention_rows(seqs, counts, starts, positions),
        segments=segments,
        lora=_lora_rows(kernels, packed, segments),
        sampled=sampled,
        sample_counts=sample_counts,
        samples=samples,
        sample_rows=numbers_on(kernels.device, samples),
        sample_segments=sample_segments,
        sample_lora=_lora_rows(kernels, packed, sample_segments),
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


def _segments(seqs: list[Sequence], counts: list[int]) -> Segments:
    """One per run of equal adapters."""
    starts = [0]
    adapters: list[str | None] = []
    for seq, count in zip(seqs, counts, strict=True):
        if adapters and seq.adapter_id == adapters[-1]:
            starts[-1] += count
            continue
        adapters.append(seq.adapter_id)
        starts.append(starts[-1] + count)
    return Segments(starts, adapters)


def _lora_rows(kernels: Kernels, packed: Callable[[str], PackedAdapter | None], segments: Segments) -> Any:
    """None if no row has an adapter."""
    if all(a is None for a in segments.adapters):
        return None
    adapters = [None if a is None else packed(a) for a in segments.adapters]
    return kernels.lora_rows(segments.starts, adapters)
