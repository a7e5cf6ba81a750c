"""A sequence's log-probabilities, to the last bit: alone, in company, chunked, and after it was preempted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stoa.engine.kernels import available_isas
from tests.engine.driving import Answer, drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder

KINDS = [("fp32", "none"), ("bf16", "none"), ("bf16", "int8"), ("bf16", "int4")]


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 300, length).tolist() for length in (70, 3, 33, 48, 16, 61)]


def asked() -> list[Any]:
    return [
        request(
            str(i), p, adapter=None if i == 2 else adapter_folder("qwen3", i % 5), max_tokens=20, logprobs=20
        )
        for i, p in enumerate(prompts())
    ]


def bits(answers: dict[tuple[str, int], Answer]) -> dict[str, Any]:
    return {key[0]: (a.tokens, a.logprobs) for key, a in answers.items()}


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("dtype", "quantize"), KINDS, ids=[f"{d}-{q}" for d, q in KINDS])
def test_company_chunks_and_preemption_change_no_bit(isa: str, dtype: str, quantize: str) -> None:
    """Tokens and their twenty best log-probabilities are equal, not close."""
    settings = {"isa": isa, "dtype": dtype, "quantize": quantize, "prefix_caching": False}
    folder = model_folder("qwen3")
    engine = make_engine(folder, speculation=False, **settings)
    alone = {k: v for r in asked() for k, v in bits(drain(engine, [r])).items()}
    together = make_engine(folder, **settings)
    assert bits(drain(together, asked())) == alone
    chunked = make_engine(folder, max_batch_tokens=7, **settings)
    assert bits(drain(chunked, asked())) == alone
    page = chunked.pool.page_bytes
    tight = make_engine(folder, pool_bytes=16 * page, max_batch_tokens=24, max_model_len=96, **settings)
    assert bits(drain(tight, asked())) == alone
    assert tight.stats().preemptions + tight.stats().adapter_evictions > 0
