"""Steps on nothing, before the first: kernels are compiled and measured then, and the memory that steps need is taken."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows, DrawRow, KVLayout, LoraPair, PackedAdapter
from stoa.engine.model.decoder import Decoder

_CONTEXT = 2048  # tokens, where the model knows as many
_MOST_DECODING = 256  # sequences
_RANK = 16
_DRAWS = (DrawRow(), DrawRow(temperature=1.0, top_k=2, top_p=0.5))


def rehearse(decoder: Decoder, rows: int, seqs: int, layout: KVLayout) -> None:
    """Makes steps of all sizes up to `rows`, with an adapter and without, and draws for up to `seqs` sequences. With
    several ranks, on all of them at once."""
    kernels = decoder.kernels
    page = torch.zeros(layout.page_bytes, dtype=torch.uint8, device=kernels.device)
    adapter, memory = _stand_in(decoder)
    for size in _sizes(rows):
        nothing = _nothing(size, min(_CONTEXT, len(decoder.rope)), layout.block_size)
        starts = nothing.query_start.tolist()
        for lora in (None, kernels.lora_rows(starts, [adapter] * (len(starts) - 1))):
            decoder.try_step(size, nothing, lora, page, layout, most=rows)
    for size in _sizes(seqs):
        hidden = torch.zeros(size, decoder.config.hidden_size, dtype=kernels.dtype, device=kernels.device)
        logits = decoder.logits(hidden, None)
        if decoder.shards.rank == 0:
            for how in _DRAWS:
                kernels.draw(logits, [how] * size)
    kernels.forget_adapters()
    if kernels.device.type == "cuda":
        torch.cuda.synchronize(kernels.device)
    del memory  # until here kernels read it


def _sizes(most: int) -> list[int]:
    """Powers of two and the most, the largest first: memory is taken once."""
    return sorted({*(1 << i for i in range(most.bit_length())), most}, reverse=True)


def _stand_in(decoder: Decoder) -> tuple[PackedAdapter, Tensor]:
    """An adapter on all linears but the head, and the memory it lies in."""
    linears, kernels = decoder.linears, decoder.kernels
    pairs: list[list[LoraPair | None]] = [
        [LoraPair(torch.zeros(_RANK, w.k), torch.zeros(n, _RANK), 1.0) for n in w.splits] for w in linears
    ]
    pairs[-1] = [None]
    ranks = [[0 if pair is None else _RANK for pair in group] for group in pairs]
    memory = torch.empty(kernels.adapter_nbytes(linears, ranks), dtype=torch.uint8, device=kernels.device)
    return kernels.stage_adapter(linears, pairs)(memory), memory


def _nothing(rows: int, context: int, block_size: int) -> AttentionRows:
    """Rows that leave no key and value: of as many sequences, or if there are more than a step ever decodes, of one."""
    seqs = rows if rows <= _MOST_DECODING else 1
    return AttentionRows(
        query_start=np.linspace(0, rows, seqs + 1).astype(np.int32),
        context_len=np.full(seqs, context, dtype=np.int32),
        block_table=np.zeros((seqs, -(-context // block_size)), dtype=np.int32),
        positions=np.full(rows, context - 1, dtype=np.int32),
        slots=np.full(rows, -1, dtype=np.int64),
    )
