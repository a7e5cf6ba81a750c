"""Adapter folders: what PEFT computes is what is read, all else is refused by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from stoa.engine.adapters.names import LM_HEAD, module_name
from stoa.engine.adapters.peft import AdapterSpec, load_pairs, read_adapter
from stoa.errors import InvalidAdapter
from tests.engine.adapters.folders import BASE, RAW, tensors, write

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INNER = "base_model.model.model"
NAME = f"{INNER}.layers.0.self_attn.q_proj"


def read(folder: Path) -> AdapterSpec:
    return read_adapter(folder, BASE, max_rank=32)


def peft_model(**settings: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**RAW))
    return peft.get_peft_model(base, peft.LoraConfig(**settings))


# -- the same as PEFT


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": EVERY, "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": EVERY, "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": r".*\.1\.(self_attn|mlp)\.(q_proj|up_proj)"},
        {"target_modules": ["model.layers.0.self_attn.k_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": EVERY, "exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]},
        {"target_modules": EVERY, "exclude_modules": r"model\.layers\.1\..*"},
        {
            "target_modules": EVERY,
            "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 7, "self_attn.*": 3, "^up_proj": 5},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 32, "(gate|up)_proj": 1.5, "1.mlp.down_proj": 9},
        },
        {
            "target_modules": ["q_proj", "v_proj"],
            "use_rslora": True,
            "rank_pattern": {r"layers\.1\.self_attn\.(q|v)_proj": 16, "v_proj": 1},
            "alpha_pattern": {r".*\.1\..*": 3},
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
)
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_modules_ranks_and_scales_are_pefts(tmp_path: Path, settings: dict[str, Any]) -> None:
    """For every way to choose modules, ranks and alphas, PEFT and we agree on each module and tensor."""
    model = peft_model(**settings)
    model.save_pretrained(tmp_path)
    spec = read(tmp_path)
    pairs = load_pairs(spec)
    theirs = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert {module_name(key) for key in spec.modules} == set(theirs)
    for key, shape in spec.modules.items():
        layer = theirs[module_name(key)]
        assert shape.rank == layer.r["default"]
        assert shape.scale == layer.scaling["default"] == pairs[key].scale
        assert torch.equal(pairs[key].a, layer.lora_A["default"].weight)
        assert torch.equal(pairs[key].b, layer.lora_B["default"].weight)
    assert spec.max_rank == max(s.rank for s in spec.modules.values())
    assert spec.nbytes == sum(4 * (p.a.numel() + p.b.numel()) for p in pairs.values())


@pytest.mark.filterwarnings("ignore")
def test_lm_head_is_adapted(tmp_path: Path) -> None:
    """PEFT saves copies of the embeddings with it; they are the base's own and are passed over."""
    peft_model(target_modules=["lm_head", "q_proj"]).save_pretrained(tmp_path)
    spec = read(tmp_path)
    assert spec.modules[LM_HEAD, "lm_head"].rank == 4
    assert load_pairs(spec)[LM_HEAD, "lm_head"].b.shape == (96, 4)
    assert len(spec.modules) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Tensors come in the dtype of the file; alpha over the root of r with rslora."""
    spec = read(write(tmp_path, tensors(dtype=dtype), {"use_rslora": True}))
    pairs = load_pairs(spec)
    assert {p.a.dtype for p in pairs.values()} == {dtype}
    assert pairs[0, "q_proj"].scale == 8 / math.sqrt(4)
    assert torch.equal(pairs[1, "down_proj"].b, tensors(dtype=dtype)[
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    ])  # fmt: skip


def test_names_with_the_adapter_in_them_are_read(tmp_path: Path) -> None:
    """lora_A.default.weight is another spelling of lora_A.weight."""
    weights = {k.replace(".weight", ".default.weight"): v for k, v in tensors().items()}
    assert len(load_pairs(read(write(tmp_path, weights)))) == 4


def test_the_id_names_the_content(tmp_path: Path) -> None:
    """Same ranks, scales and weights: same id, wherever and with whatever remarks. Else another."""
    first = read(write(tmp_path / "a")).id
    assert len(first) == 64
    assert read(write(tmp_path / "b", config={"lora_dropout": 0.5, "task_type": "CAUSAL_LM"})).id == first
    assert read(write(tmp_path / "c", tensors(seed=1))).id != first
    assert read(write(tmp_path / "d", config={"lora_alpha": 9})).id != first


def test_changed_content_is_noticed(tmp_path: Path) -> None:
    """Loading under an id that the folder no longer has is refused."""
    spec = read(write(tmp_path))
    write(tmp_path, tensors(seed=1))
    with pytest.raises(InvalidAdapter, match="changed"):
        load_pairs(read(tmp_path), expected_id=spec.id)


def test_checking_needs_no_torch(tmp_path: Path) -> None:
    """A gateway process reads and registers adapters without importing torch."""
    write(tmp_path / "a", tensors(dtype=torch.bfloat16))
    program = f"""
import sys
from pathlib import Path
from stoa.engine.adapters.registry import AdapterRegistry
from stoa.engine.model.config import parse_model_config
model = parse_model_config({RAW!r})
AdapterRegistry(Path({str(tmp_path / "home")!r}), model, 32).add("a", Path({str(tmp_path / "a")!r}))
assert "torch" not in sys.modules
"""
    path = [p for p in sys.path if p]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"], check=True)


# -- refusals


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"some_new_idea": {"x": 1}}, "some_new_idea"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"r": 0}, "r must be a rank of at least 1"),
        ({"r": True}, "r must be a rank"),
        ({"r": 4.0}, "r must be a rank"),
        ({"r": 33}, "at most 32"),
        ({"r": 8}, r"has shape \[4, 24\], expected \[8, 24\]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"((": 4}}, "rank_pattern holds a malformed"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"target_modules": ["q_proj", "model.embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj"]}, "down_proj"),
        ({"target_modules": None}, "down_proj"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": "q_proj"}, "target_modules"),
        ({"exclude_modules": ["q_proj"]}, "q_proj"),
        ({"layers_to_transform": [0]}, r"layers\.1\."),
        ({"layers_to_transform": "all"}, "layers_to_transform"),
        ({"layers_to_transform": [0], "target_modules": "all-linear"}, "needs target_modules to be a list"),
        ({"layers_to_transform": [0, 1], "layers_pattern": "h"}, "layers_pattern"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    """The setting is named."""
    with pytest.raises(InvalidAdapter, match=reason):
        read(write(tmp_path, config=config))


def test_what_is_off_or_about_training_is_accepted(tmp_path: Path) -> None:
    """Initialization and bookkeeping do not change what is computed."""
    neutral = {
        "use_dora": False,
        "modules_to_save": None,
        "some_new_idea": None,
        "init_lora_weights": "eva",
        "eva_config": {"rho": 2.0},
        "corda_config": {"x": 1},
        "loftq_config": {"loftq_bits": 4},
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "auto_mapping": {"base_model_class": "X"},
        "base_model_name_or_path": "somewhere/else",
    }
    assert len(read(write(tmp_path, config=neutral)).modules) == 4


Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.clear(), "no LoRA tensors"),
        (lambda t: t.pop(f"{NAME}.lora_B.weight"), "has lora_A but no lora_B"),
        (lambda t: t.pop(f"{NAME}.lora_A.weight"), "has lora_B but no lora_A"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.zeros(4, 17)}), r"\[4, 17\], expected \[4, 16\]"),
        (lambda t: t.update({f"{NAME}.lora_B.weight": torch.zeros(16, 4, 1)}), r"expected \[16, 4\]"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.full((4, 16), math.nan)}), "NaN"),
        (lambda t: t[f"{NAME}.lora_A.weight"].view(-1).__setitem__(63, -math.inf), "infinite"),
        (lambda t: t.update({k: v.half() / 0 for k, v in t.items()}), "infinite"),
        (lambda t: t.update({k: v.bfloat16() * math.nan for k, v in t.items()}), "NaN"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.zeros(4, 16, dtype=torch.int8)}), "I8"),
        (lambda t: t.update({k: v.double() for k, v in t.items()}), "F64"),
        (lambda t: t.update(tensors(["self_attn.q_proj"], [7])), "2 layers"),
        (lambda t: t.update({f"{INNER}.layers.0.mlp.q_proj.lora_A.weight": torch.ones(4, 16)}), "mlp"),
        (lambda t: t.update({f"{INNER}.norm.lora_A.weight": torch.ones(4, 16)}), "norm"),
        (lambda t: t.update({f"{INNER}.embed_tokens.lora_embedding_A": torch.ones(4)}), "embed"),
        (lambda t: t.update({f"{INNER}.embed_tokens.weight": torch.ones(97, 16)}), "vocabularies"),
        (lambda t: t.update({f"{NAME}.lora_magnitude_vector": torch.ones(16)}), "DoRA"),
        (lambda t: t.update({f"{NAME}.bias": torch.ones(16)}), "biases"),
        (lambda t: t.update({f"{NAME}.lora_A.default.weight": torch.ones(4, 16)}), "two tensors"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: Change, reason: str) -> None:
    """Shapes say what was expected and found; values, dtypes and places are checked."""
    weights = tensors()
    change(weights)
    with pytest.raises(InvalidAdapter, match=reason):
        read(write(tmp_path, weights))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt", "x.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    """A folder with pickled weights only is told about safetensors; the pickle is not opened."""
    (write(tmp_path) / "adapter_model.safetensors").rename(tmp_path / name)
    with pytest.raises(InvalidAdapter, match="safetensors"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_weights_are_refused(tmp_path: Path, keep: int) -> None:
    """Wherever the file was cut."""
    path = write(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidAdapter, match="truncated"):
        read(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", "\xff", "[" * 100_000, json.dumps({"a": "x" * 1_100_000})])
def test_an_unreadable_config_is_refused(tmp_path: Path, text: str | None) -> None:
    """Missing, not JSON, not an object, too large: by file name."""
    path = write(tmp_path) / "adapter_config.json"
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        read(tmp_path)


def test_an_endless_expression_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression that would run for ever ends after a time, whatever its form."""
    monkeypatch.setattr("stoa.engine.adapters.patterns._TIMEOUT_S", 0.3)
    for evil in (
        r"(([a-z._0-9])+)+!",
        "(?:" + "".join(f"({c}|{c})" for c in "model.layers.0.self_attn.q_") + "!)",
    ):
        with pytest.raises(InvalidAdapter, match="take over"):
            read(write(tmp_path, config={"target_modules": evil}))
