"""What ranks hold is the whole, cut: no process is started here."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stoa.engine.config import EngineConfig
from stoa.engine.engine import Engine
from stoa.engine.kernels import load_kernels
from stoa.engine.kernels.interface import LoraPair
from stoa.engine.kernels.reference import TorchKernels
from stoa.engine.model.config import ModelConfig, read_model_config
from stoa.engine.model.decoder import Decoder
from stoa.engine.parallel.shards import Shards, check_size
from stoa.errors import ConfigError
from tests.engine.tiny import model_folder

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
SUMMED = ("o_proj", "down_proj")


def config_of(**sizes: int) -> ModelConfig:
    return dataclasses.replace(read_model_config(model_folder("llama")), **sizes)


def run(weight: Tensor, bias: Tensor | None, pair: LoraPair, x: Tensor) -> Tensor:
    """What a rank computes with these."""
    kernels = TorchKernels(torch.float32)
    linear = kernels.pack_linear([weight], [bias])
    ranks = [[pair.a.shape[0]]]
    dst = torch.empty(kernels.adapter_nbytes([linear], ranks), dtype=torch.uint8)
    packed = kernels.stage_adapter([linear], [[pair]])(dst)
    out = torch.empty(len(x), weight.shape[0])
    kernels.linear(x, linear, out, lora=kernels.lora_rows([0, len(x)], [packed]))
    return out


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5),
    module=st.sampled_from(MODULES),
    kv_heads=st.integers(1, 2),
    queries=st.integers(1, 3),
    inner=st.integers(1, 9),
    vocab=st.integers(5, 40),
    rank=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_what_ranks_compute_together_is_what_one_computes(
    size: int, module: str, kv_heads: int, queries: int, inner: int, vocab: int, rank: int, seed: int
) -> None:
    """Side by side or summed, with bias and adapter."""
    model = config_of(
        hidden_size=12,
        num_kv_heads=kv_heads * size,
        num_heads=kv_heads * size * queries,
        head_dim=4,
        intermediate_size=inner * size,
        vocab_size=vocab,
    )
    n, k = model.linear_shapes()[module]
    g = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(n, k, generator=g), torch.randn(n, generator=g)
    pair = LoraPair(torch.randn(rank, k, generator=g), torch.randn(n, rank, generator=g), 0.5)
    x = torch.randn(3, k, generator=g)
    outs = []
    for r in range(size):
        shards = Shards(model, r, size)
        cut = shards.cut(module)
        part = weight[cut.rows, cut.columns]
        assert part.shape == shards.local.linear_shapes()[module]
        own_bias = bias[cut.rows] if shards.adds_bias(module) else None
        outs.append(run(part, own_bias, shards.pair(module, pair), x[:, cut.columns]))
    together = torch.stack(outs).sum(0) if module in SUMMED else torch.cat(outs, dim=1)
    torch.testing.assert_close(together, run(weight, bias, pair, x), rtol=1e-4, atol=1e-4)


@given(vocab=st.integers(8, 200_000), size=st.integers(1, 8))
def test_no_rank_has_more_of_the_vocabulary_than_the_first(vocab: int, size: int) -> None:
    """So an adapter's pages on rank 0 are enough on every rank."""
    widths = Shards(config_of(vocab_size=vocab, num_heads=8, num_kv_heads=8), 0, size).widths()
    assert sum(widths) == vocab
    assert sorted(widths, reverse=True) == widths
    assert widths[0] - widths[-1] <= 1


def test_a_gpu_group_of_heads_stays_together() -> None:
    """Query heads lie on the rank of the KV head that they read."""
    model = config_of(num_heads=8, num_kv_heads=4, head_dim=2)
    for rank in range(4):
        shards = Shards(model, rank, 4)
        assert shards.cut("q_proj").rows == slice(4 * rank, 4 * rank + 4)
        assert shards.cut("k_proj").rows == slice(2 * rank, 2 * rank + 2)
        assert shards.cut("o_proj").columns == shards.cut("q_proj").rows


@pytest.mark.parametrize(
    ("sizes", "more", "message"),
    [
        ({}, {"tensor_parallel": 3}, r"4 heads, 2 KV heads, intermediate_size 96\): 1, 2"),
        ({"intermediate_size": 75}, {"tensor_parallel": 2}, r"intermediate_size 75\): 1$"),
        ({}, {"tensor_parallel": 2, "quantize": "int4"}, r"quantize 'int4' in groups of 64\): 1$"),
    ],
    ids=["heads", "inner", "groups"],
)
def test_sizes_that_do_not_divide_are_refused(
    sizes: dict[str, int], more: dict[str, Any], message: str
) -> None:
    """With those that would."""
    with pytest.raises(ConfigError, match=message) as caught:
        check_size(EngineConfig(model="", **more), config_of(**sizes))
    assert caught.value.param == "tensor_parallel"


def test_shards_of_whole_groups_may_be_quantized() -> None:
    """A scale is of 64 inputs; so is a shard, or of some of them."""
    model = config_of(intermediate_size=256, head_dim=32, hidden_size=96)
    check_size(EngineConfig(model="", tensor_parallel=2, quantize="int8"), model)


@pytest.mark.parametrize(
    ("gpus", "message"), [(1, "shows 1 GPU; accepted: 1$"), (0, "shows no GPU; accepted: --device cpu")]
)
def test_what_cannot_be_is_refused_before_a_process_starts(
    gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size that does not divide, and fewer GPUs than ranks."""

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    folder = str(model_folder("llama"))
    with pytest.raises(ConfigError, match="tensor_parallel is 4; accepted"):
        Engine(EngineConfig(model=folder, tensor_parallel=4))
    with pytest.raises(ConfigError, match=message):
        Engine(EngineConfig(model=folder, tensor_parallel=2, device="cuda"))


def test_packed_weights_are_kept_for_each_rank(tmp_path: Path) -> None:
    """What one rank maps at the next start is what it packed, not another's."""
    folder = model_folder("llama-bias")
    model = read_model_config(folder)
    kernels = load_kernels(torch.bfloat16, threads=1)
    if kernels.keeper() is None:
        pytest.skip("these kernels keep nothing")

    def loaded(rank: int) -> Decoder:
        decoder = Decoder(model, kernels, folder, 64, cache=tmp_path, shards=Shards(model, rank, 2))
        if decoder.writer is not None:
            decoder.writer.join()
        return decoder

    first = [loaded(rank) for rank in range(2)]
    again = [loaded(rank) for rank in range(2)]
    assert [d.writer is not None for d in first + again] == [True, True, False, False]
    for packed, mapped in zip(first, again, strict=True):
        for a, b in zip(packed.linears, mapped.linears, strict=True):
            assert torch.equal(a.data, b.data)  # type: ignore[attr-defined]
            assert a.splits == b.splits
