"""A row's bits on the device: the same alone, in any company, in any tile, however its prompt is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoa.engine.kernels.cuda import linear, lora
from tests.engine.driving import drain, make_engine, request
from tests.engine.kernels.test_kernels import DTYPES, adapter, attention_case, attention_step, pack, randn
from tests.engine.test_invariance import KINDS, asked, bits
from tests.engine.tiny import model_folder
from tests.gpu.moved import INTERPRET, Moved

pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPE = (1100, (80, 48, 40)) if INTERPRET else (4096, (4096, 1024, 1024))
COUNTS = (
    (2, 16, 17, 40)
    if INTERPRET
    else (2, 3, 4, 5, 8, 13, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 200, 255, 256, 257,
          500, 511, 512, 513, 1000, 1024, 2048)
)  # fmt: skip


@each_dtype
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_row_of_a_linear_keeps_its_bits(rng: torch.Generator, dtype: torch.dtype, bits: int) -> None:
    """With any number of others, on its adapter or on none, whatever was tuned for that number."""
    k, splits = SHAPE
    kernels: Any = Moved(dtype)
    w = kernels.pack_linear([randn(rng, n, k) for n in splits], [None] * 3, bits)
    some = [pack(kernels, w, adapter(rng, k, splits, r)) for r in ((16, 16, 16), (5, 0, 1), (70, 8, 2))]
    which = [None, *some]
    x = randn(rng, max(COUNTS), k, dtype=dtype)

    def run(order: list[int]) -> Tensor:
        """Rows in `order`, row i on adapter i % 4."""
        starts, adapters = [0], []
        for at, i in enumerate(order):
            if not adapters or adapters[-1] is not which[i % 4]:
                adapters.append(which[i % 4])
                starts.append(at)
            starts[-1] = at + 1
        out = torch.empty(len(order), sum(splits), dtype=dtype)
        kernels.linear(x[order].contiguous(), w, out, lora=kernels.lora_rows(starts, adapters))
        return out

    alone = {i: run([i])[0] for i in range(min(8, *COUNTS[1:]))}
    for count in COUNTS:
        order = sorted(range(count), key=lambda i: i % 4) if count % 2 else list(range(count))
        found = run(order)
        for i, bits_alone in alone.items():
            if i < count:
                assert torch.equal(found[order.index(i)], bits_alone), (count, i)


@each_dtype
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_no_choice_that_is_tuned_changes_a_bit(rng: torch.Generator, dtype: torch.dtype, bits: int) -> None:
    """Every tile of a linear and every way to expand, for few rows and many."""
    k, splits = SHAPE
    kernels: Any = Moved(dtype)
    inner = kernels.inner
    w = kernels.pack_linear([randn(rng, n, k) for n in splits], [None] * 3, bits)
    packed = pack(kernels, w, adapter(rng, k, splits, (16, 3, 0)))
    for rows in (1, 33) if INTERPRET else (1, 16, 33, 64, 128, 300, 2048):
        x = randn(rng, rows, k, dtype=dtype).to(inner.device)
        workspace = linear.Workspace.of([w], rows, inner.device)
        found = []
        for tile in linear.candidates(w, rows):
            out = torch.full((rows, w.n), torch.nan, dtype=dtype, device=inner.device)
            try:
                linear.linear(inner.launch, x, w, out, tile=tile, workspace=workspace)
            except Exception as error:  # a tile that does not fit this GPU is never chosen
                print(f"{tile} does not run: {error}")
                continue
            found.append(out.cpu())
        assert found
        assert all(torch.equal(out, found[0]) for out in found), rows
        segments = inner.lora_rows([0, rows], [packed]).sent(inner.device)
        h = inner.scratch.shrunk(lora.pieces(k)[0], rows)
        lora.shrink(inner.launch, x, len(splits), 0, segments, h)
        deltas = []
        for how in lora.EXPANDS:
            delta = torch.full((rows, w.n), torch.nan, device=inner.device)
            lora.expand(inner.launch, h, dtype, k, splits, 0, segments, delta, how, accumulate=False)
            deltas.append(delta.cpu())
        assert all(torch.equal(delta, deltas[0]) for delta in deltas), rows


@each_dtype
@pytest.mark.parametrize("window", [0, 20])
def test_attention_keeps_its_bits_however_a_prompt_is_cut(
    rng: torch.Generator, dtype: torch.dtype, window: int
) -> None:
    """At once, token by token, in odd chunks, alone or beside longer ones."""
    kernels: Any = Moved(dtype)
    length, others = (60, [40]) if INTERPRET else (1300, [40, 3000, 700])
    heads, kv_heads, d = (6, 2, 32) if INTERPRET else (32, 8, 128)
    state = rng.get_state()

    def run(cuts: list[int], beside: bool) -> Tensor:
        rng.set_state(state)
        case = attention_case(kernels, rng, [length, *others], heads, kv_heads, d, 16, norm=False)
        parts = []
        for first, last in itertools.pairwise(cuts):
            spans = [(0, first, last)]
            spans += [(1 + i, 0, n) for i, n in enumerate(others)] if beside else []
            parts.append(attention_step(kernels, case, spans, heads, window)[0])
        return torch.cat(parts)

    whole = run([0, length], beside=False)
    last = range(length - 5, length + 1)
    for cuts in ([0, 7, 16, 33, length], [0, length - 1, length], [0, *last]):
        for beside in (False, True):
            assert torch.equal(run(cuts, beside=beside), whole), (cuts, beside)


@pytest.mark.parametrize(("dtype", "quantize"), KINDS, ids=[f"{d}-{q}" for d, q in KINDS])
def test_an_engines_answers_keep_their_bits(dtype: str, quantize: str) -> None:
    """Tokens and their twenty best log-probabilities: alone, together, in chunks, and after a preemption."""
    settings = {"device": "cuda", "dtype": dtype, "quantize": quantize, "prefix_caching": False}
    folder = model_folder("qwen3")
    few = asked()[:3] if INTERPRET else asked()
    alone_engine = make_engine(folder, speculation=False, **settings)
    alone = {k: v for r in few for k, v in bits(drain(alone_engine, [r])).items()}
    together = make_engine(folder, **settings)
    assert bits(drain(together, few)) == alone
    if INTERPRET:
        return
    chunked = make_engine(folder, max_batch_tokens=7, **settings)
    assert bits(drain(chunked, few)) == alone
    page = chunked.pool.page_bytes
    tight = make_engine(folder, pool_bytes=16 * page, max_batch_tokens=24, max_model_len=96, **settings)
    assert bits(drain(tight, few)) == alone
    assert tight.stats().preemptions + tight.stats().adapter_evictions > 0


def test_a_sequence_keeps_its_bits_in_steps_of_any_size(rng: torch.Generator) -> None:
    """Beside 0 to 200 others: every size of graph, and rows that only pad one."""
    folder = model_folder("llama")
    numbers = np.random.default_rng(rng.initial_seed())
    prompt = numbers.integers(3, 300, 20).tolist()
    engine = make_engine(folder, device="cuda", dtype="bf16", max_num_seqs=256, max_batch_tokens=512)
    found = []
    for others in (0, 1, 5) if INTERPRET else (0, 1, 2, 4, 7, 15, 23, 31, 47, 63, 64, 90, 130, 200):
        beside = [
            request(f"{i}", numbers.integers(3, 300, 1 + i % 9).tolist(), max_tokens=12)
            for i in range(others)
        ]
        mine = request("mine", prompt, max_tokens=3 if INTERPRET else 8, logprobs=5)
        answer = drain(engine, [*beside, mine])["mine", 0]
        found.append((answer.tokens, answer.logprobs))
    assert all(answer == found[0] for answer in found)
