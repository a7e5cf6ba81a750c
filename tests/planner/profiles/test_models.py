"""Shapes of models: the catalog against published sizes, and config.json files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoa.errors import ConfigError
from stoa.planner.profiles import find_model, read_shape

LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    facts = {name: value for name, value in (LLAMA3 | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-2-7b-hf", 6.74), ("llama2_70b", 68.98), ("meta-llama/Meta-Llama-3-8B-Instruct", 8.03),
        ("Llama-3.3-70B-Instruct", 70.55), ("Llama-3.2-1B", 1.24), ("mistralai/Mistral-7B-Instruct-v0.3", 7.25),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7), ("Qwen/Qwen2.5-0.5B", 0.49), ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("qwen2.5-32b", 32.8), ("Qwen2.5-72B", 72.7), ("Qwen/Qwen3-0.6B", 0.6), ("Qwen/Qwen3-4B-Instruct-2507", 4.0),
        ("Qwen3-32B", 32.8), ("Qwen/Qwen3-30B-A3B", 30.5), ("llama1_30b", 32.5),
    ],
)  # fmt: skip
def test_known_models_have_as_many_parameters_as_published(name: str, billions: float) -> None:
    """By names as people write them."""
    assert find_model(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_rows_go_only_through_the_experts_they_are_sent_to() -> None:
    """Qwen3-30B-A3B: three of thirty billion, embeddings not among them."""
    shape = find_model("qwen3-30b-a3b")
    assert shape.in_row / 1e9 == pytest.approx(2.7, rel=0.03)
    assert shape.in_step > 10 * shape.in_row


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    """And with what else would do."""
    with pytest.raises(ConfigError, match=r"'gpt-9' is not known; give its config\.json .* llama-3-8b"):
        find_model("gpt-9")


def test_a_config_says_what_the_catalog_says(tmp_path: Path) -> None:
    """The same shape, by folder or by file."""
    known = find_model("llama-3-8b")
    for path in (written(tmp_path), tmp_path / "config.json"):
        shape = read_shape(path, "llama-3-8b")
        assert shape == known


@pytest.mark.parametrize(
    ("changes", "weight_bytes"),
    [
        ({}, 2.0), ({"torch_dtype": None, "dtype": "float32"}, 4.0), ({"quantization_config": {"quant_method": "fp8"}}, 1.0),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, 0.53),
    ],
)  # fmt: skip
def test_weights_take_what_their_type_says(
    tmp_path: Path, changes: dict[str, Any], weight_bytes: float
) -> None:
    """Quantized ones with their scales."""
    assert read_shape(written(tmp_path, **changes)).weight_bytes == pytest.approx(weight_bytes)


def test_experts_are_counted(tmp_path: Path) -> None:
    """Under either family's names, and in the part of a model that writes text."""
    mixtral = written(tmp_path, num_local_experts=8, num_experts_per_tok=2, vocab_size=32000)
    assert read_shape(mixtral).parameters == find_model("mixtral-8x7b").parameters
    inner = LLAMA3 | {"num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": inner}))
    assert read_shape(tmp_path).parameters == find_model("mixtral-8x7b").parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None; accepted: 1 or above"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({"num_hidden_layers": "many"}, r"Expected `int \| null`"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"torch_dtype": "int7"}, "dtype is 'int7'; accepted: bfloat16"),
        ({"quantization_config": {"quant_method": "dreams"}}, "'dreams' is not known"),
        ({"num_experts": 8}, "num_experts_per_tok is None"),
    ],
)
def test_a_config_that_cannot_be_described_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """With the key that is wrong."""
    with pytest.raises(ConfigError, match=message):
        read_shape(written(tmp_path, **changes))


def test_a_config_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(ConfigError, match="No such file"):
        read_shape(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"accepted: a Hugging Face config\.json"):
        read_shape(tmp_path)
