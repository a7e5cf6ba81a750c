"""Base model folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stoa.errors import InvalidModel, UnsupportedModel
from tests.engine.driving import drain, make_engine, request
from tests.engine.tiny import hf_model, model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a small model to damage."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def test_sharded_weights_give_the_same_answer(tmp_path: Path) -> None:
    """An index over many files reads as one."""
    hf_model("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    asked = request("r", [5, 6, 7], max_tokens=12)
    whole = drain(make_engine(model_folder("llama")), [asked])["r", 0].tokens
    assert drain(make_engine(tmp_path), [asked])["r", 0].tokens == whole


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel, "GPT2LMHeadModel.*LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModel, "awq"),
        ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModel, "longrope.*yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, InvalidModel, "factor"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, InvalidModel, "multiple"),
        ({"hidden_size": -1}, InvalidModel, "hidden_size"),
        ({"vocab_size": 77}, InvalidModel, r"\[320, 64\].*\[77, 64\]"),
        ({"num_hidden_layers": 3}, InvalidModel, "layers.2"),
        ({"num_hidden_layers": 10**9}, InvalidModel, "num_hidden_layers.*10000"),
        ({"max_position_embeddings": 10**13}, InvalidModel, "max_position_embeddings"),
        ({"rms_norm_eps": "abc"}, InvalidModel, "rms_norm_eps"),
        ({"rms_norm_eps": None}, InvalidModel, "rms_norm_eps"),
        ({"rope_parameters": "yarn"}, InvalidModel, "rope scaling must be an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, InvalidModel, "rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, InvalidModel, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, InvalidModel, "factor"),
        ({"architectures": [1]}, InvalidModel, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, InvalidModel, "list of names"),
        ({"quantization_config": "gptq"}, UnsupportedModel, "gptq"),
        ({"eos_token_id": "abc"}, InvalidModel, "eos_token_id"),
        ({"eos_token_id": 99999}, InvalidModel, "eos_token_id.*320"),
        ({"head_dim": 1040}, UnsupportedModel, "head_dim 1040.*1024"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": "x"}, InvalidModel, "sliding_window"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": -5}, InvalidModel, "sliding_window"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_by_name(
    folder: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    """The message names the field and what would be accepted."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=match):
        make_engine(folder)


def damage_nothing_left(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def damage_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def damage_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def damage_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff{")


def damage_index(folder: Path) -> None:
    weight_map = {"model.norm.weight": "../elsewhere.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (damage_nothing_left, "no model.safetensors"),
        (damage_pickle, "pickled weights"),
        (damage_truncated, "not a whole safetensors file"),
        (damage_nan, "up_proj.weight.*NaN"),
        (damage_missing, "no tensor 'model.norm.weight'"),
        (damage_integers, "int32"),
        (damage_config, "cannot be read as JSON"),
        (damage_index, "outside the folder"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Any, match: str) -> None:
    """Each kind of damage has its own message."""
    damage(folder)
    with pytest.raises(UnsupportedModel, match=match):
        make_engine(folder)
