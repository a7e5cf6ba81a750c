"""Weights packed once and mapped afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stoa.engine.kernels import available_isas, load_kernels
from stoa.engine.kernels.quantize import fill_strips
from stoa.engine.model.config import read_model_config
from stoa.engine.model.decoder import Decoder
from stoa.engine.model.packed import made_from, open_packed, packed_path, write_packed
from tests.engine.tiny import model_folder

needs_kernels = pytest.mark.skipif(not available_isas(), reason="the C kernels were not built")


def loaded(folder: Path, cache: Path | None, bits: int = 16) -> Decoder:
    kernels = load_kernels(torch.bfloat16, threads=2)
    decoder = Decoder(read_model_config(folder), kernels, folder, 64, bits=bits, cache=cache)
    if decoder.writer is not None:
        decoder.writer.join()
    return decoder


def weights(decoder: Decoder) -> list[Any]:
    """Every tensor that the decoder holds, as bytes."""
    tensors: list[Any] = [decoder.embedding, decoder.final_norm]
    for layer in decoder.layers:
        tensors += [layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm]
    for linear in decoder.linears:
        tensors += [linear.data, linear.bias]  # type: ignore[attr-defined]
    return [None if t is None else t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


@needs_kernels
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("model", ["llama", "llama-tied", "llama-bias", "llama-mha-odd", "qwen3"])
def test_what_is_mapped_is_what_was_packed(tmp_path: Path, model: str, bits: int) -> None:
    """The second start reads no checkpoint and holds the very same bytes."""
    folder = model_folder(model)
    first = loaded(folder, tmp_path, bits)
    assert first.writer is not None
    second = loaded(folder, tmp_path, bits)
    assert second.writer is None
    assert weights(first) == weights(second) == weights(loaded(folder, None, bits))
    assert first.linears[0].nbytes == second.linears[0].nbytes


@needs_kernels
def test_another_checkpoint_is_packed_anew(tmp_path: Path) -> None:
    """The file is used only while the model folder is as it was."""
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    cache = tmp_path / "cache"
    before = weights(loaded(folder, cache))
    shutil.copy(model_folder("llama-llama3") / "model.safetensors", folder / "model.safetensors")
    assert weights(loaded(folder, cache)) != before
    assert len(list(cache.iterdir())) == 1  # in the place of the old one


@needs_kernels
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "header", "huge header"])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str) -> None:
    """Whatever has become of it, the engine starts from the checkpoint."""
    folder = model_folder("llama")
    good = weights(loaded(folder, tmp_path))
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    spoilt = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "text": b"no such thing",
        "header": data[:8] + b"[" + data[9:],
        "huge header": b"\xff" * 8 + data[8:],
    }
    file.write_bytes(spoilt[damage])
    assert weights(loaded(folder, tmp_path)) == good
    assert file.read_bytes() == data


@needs_kernels
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The engine runs; the next start packs again."""
    (tmp_path / "file").touch()
    assert weights(loaded(model_folder("llama"), tmp_path / "file" / "cache")) == weights(
        loaded(model_folder("llama"), None)
    )


def test_the_file_is_safetensors(tmp_path: Path) -> None:
    """Others can read it; tensors begin where vector loads want them, and nothing partial is left."""
    tensors = {"a": torch.arange(5, dtype=torch.float32), "b": torch.ones(70, dtype=torch.uint8)}
    path = tmp_path / "deep" / "x.safetensors"
    assert write_packed(path, tensors, "origin")
    read = load_file(path)
    assert torch.equal(read["a"].view(torch.float32), tensors["a"])
    assert torch.equal(read["b"], tensors["b"])
    assert list(path.parent.iterdir()) == [path]
    file = open_packed(path, "origin")
    assert file is not None
    b = file.get("b")
    assert b is not None
    assert b.data_ptr() % 64 == 0
    assert torch.equal(b, tensors["b"])
    assert file.get("c") is None
    assert open_packed(path, "another origin") is None
    file.prefault().join()


def test_what_a_dead_writer_left_is_taken_over(tmp_path: Path) -> None:
    """Half a file from before is overwritten; while another process writes, nobody else does."""
    path, partial = tmp_path / "x", tmp_path / ".x.partial"
    partial.write_bytes(b"half" * 1000)
    tensors = {"a": torch.ones(70, dtype=torch.uint8)}
    assert write_packed(path, tensors, "origin")
    assert list(tmp_path.iterdir()) == [path]
    assert open_packed(path, "origin") is not None
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not write_packed(path, tensors, "newer")
    assert open_packed(path, "origin") is not None


def test_an_origin_changes_with_any_file_of_the_model(tmp_path: Path) -> None:
    """Also when size and time of change were set back."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    before = made_from(folder, "form")
    assert made_from(folder, "form") == before != made_from(folder, "other form")
    facts = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"2")
    os.utime(folder / "model.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert made_from(folder, "form") != before
    assert packed_path(folder, tmp_path, "form") != packed_path(folder, tmp_path, "other form")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(16, 64), (5, 100), (37, 192), (1, 1)])
def test_quantizing_in_c_agrees_with_torch(shape: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    """Bit for bit, also where a group is all zeros, values tie, or the matrix ends within a strip or a group."""
    kernels = load_kernels(torch.bfloat16, threads=2)
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight[0, : min(64, shape[1])] = 0
    if shape[1] > 64:
        weight[-1, 64:] = torch.tensor([1.0, -1.0, 0.5, 0.0] * (shape[1] // 4 - 16), dtype=dtype)
    packed = kernels.keeper().parts(kernels.pack_linear([weight], [None], bits))[0]  # type: ignore[union-attr]
    expected = torch.zeros_like(packed)
    fill_strips(expected.view(-(-shape[0] // 16), -1), weight, bits)
    assert np.array_equal(packed.numpy(), expected.numpy())
