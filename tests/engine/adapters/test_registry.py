"""Names on disk: shared between processes, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stoa.engine.adapters import registry as module
from stoa.engine.adapters.peft import load_pairs, read_adapter
from stoa.engine.adapters.registry import AdapterRegistry
from stoa.errors import AdapterExists, InvalidAdapter, ModelNotFound
from tests.engine.adapters.folders import BASE, tensors, write


def open_registry(tmp_path: Path, **settings: object) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "home", BASE, 32, clock=lambda: 1234.5, **settings)  # type: ignore[arg-type]


def files(folder: Path) -> set[str]:
    """All that is there, but the lock."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock"}


def test_an_added_adapter_is_found_by_all(tmp_path: Path) -> None:
    """Another registry on the same root, opened before, sees it at once, by name and by version."""
    ours, theirs = open_registry(tmp_path), open_registry(tmp_path)
    assert theirs.list() == []
    entry = ours.add("acme.v1", write(tmp_path / "a"))
    assert theirs.get("acme.v1") == theirs.get(f"acme.v1@{entry.version}") == entry == theirs.list()[0]
    assert (entry.rank, entry.modules, entry.created) == (4, 4, 1234)
    assert entry.id.startswith(entry.version)
    assert len(load_pairs(read_adapter(entry.path, BASE, max_rank=32), expected_id=entry.id)) == 4
    assert entry.ref.id == entry.id
    assert (entry.path / "adapter_config.json").exists()


def test_replacing_moves_the_name_and_keeps_the_version(tmp_path: Path) -> None:
    """Without `replace` a taken name is refused and nothing changes; with it, both versions can be had."""
    ours, theirs = open_registry(tmp_path), open_registry(tmp_path)
    first = ours.add("a", write(tmp_path / "1"))
    with pytest.raises(AdapterExists):
        ours.add("a", write(tmp_path / "2", tensors(seed=1)))
    assert theirs.get("a") == first
    second = theirs.add("a", tmp_path / "2", replace=True)
    assert ours.get("a") == second != first
    assert ours.get(f"a@{first.version}") == first
    assert [e.version for e in ours.list()] == [second.version]
    assert ours.add("a", tmp_path / "1", replace=True) == first


def test_removing_forgets_name_and_versions(tmp_path: Path) -> None:
    """In every process; what an engine has mapped stays readable."""
    ours, theirs = open_registry(tmp_path), open_registry(tmp_path)
    entry = ours.add("a", write(tmp_path / "1"))
    theirs.get("a")
    pairs = load_pairs(read_adapter(entry.path, BASE, max_rank=32))
    ours.remove("a")
    for registry in (ours, theirs):
        for name in ("a", f"a@{entry.version}"):
            with pytest.raises(ModelNotFound):
                registry.get(name)
        with pytest.raises(ModelNotFound):
            registry.remove("a")
    assert float(pairs[0, "q_proj"].a.sum()) == float(tensors()[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ].sum())  # fmt: skip
    assert files(tmp_path / "home") == set()


def test_a_refused_adapter_leaves_nothing(tmp_path: Path) -> None:
    """No name, no files; the reason speaks of the folder that was given."""
    registry = open_registry(tmp_path)
    bad = write(tmp_path / "bad", config={"use_dora": True})
    with pytest.raises(InvalidAdapter, match="use_dora"):
        registry.add("a", bad)
    (bad / "adapter_model.safetensors").rename(bad / "adapter_model.bin")
    (bad / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InvalidAdapter, match=r"bad holds pickled weights.*safetensors"):
        registry.add("a", bad)
    with pytest.raises(InvalidAdapter, match="missing"):
        registry.add("a", tmp_path / "missing")
    assert files(tmp_path / "home") == set()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "-a", ".a", "a b", "a\n", "a@b", "é", "x" * 129, "base"]
)
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    """No way out of the root, and nobody else's name; asking for one finds nothing."""
    registry = open_registry(tmp_path, reserved=("base",))
    with pytest.raises(InvalidAdapter) as caught:
        registry.add(name, write(tmp_path / "1"))
    assert caught.value.param == "lora_name"
    with pytest.raises(ModelNotFound):
        registry.get(name)
    with pytest.raises(ModelNotFound):
        registry.remove(name)


def test_one_of_many_adders_wins(tmp_path: Path) -> None:
    """At the same time and under the same name: one adapter, the others are told."""
    folders = [write(tmp_path / str(i), tensors(seed=i)) for i in range(8)]

    def add(folder: Path) -> str | None:
        try:
            return open_registry(tmp_path).add("a", folder).id
        except AdapterExists:
            return None

    with ThreadPoolExecutor(8) as pool:
        ids = [i for i in pool.map(add, folders) if i]
    assert ids == [open_registry(tmp_path).get("a").id]


def test_another_base_model_checks_anew(tmp_path: Path) -> None:
    """What was added for one base is served by another only if it fits that too."""
    open_registry(tmp_path).add("a", write(tmp_path / "1"))
    open_registry(tmp_path).add("b", write(tmp_path / "2", tensors(layers=[0])))
    shallow = AdapterRegistry(tmp_path / "home", dataclasses.replace(BASE, num_layers=1), 32)
    assert [e.name for e in shallow.list()] == ["b"]
    assert "1 layers" in shallow.misfits()["a"]
    with pytest.raises(InvalidAdapter, match="1 layers"):
        shallow.get("a")
    low = AdapterRegistry(tmp_path / "home", BASE, 2)
    assert low.list() == []
    assert "at most 2" in low.misfits()["a"]


def test_folders_in_place(tmp_path: Path) -> None:
    """Every adapter folder inside is served where it lies; the bad ones are reported."""
    registry = open_registry(tmp_path, reserved=("base",))
    registry.add("taken", write(tmp_path / "1"))
    for name in ("good", "taken", "base", "bad name"):
        write(tmp_path / "all" / name)
    write(tmp_path / "all" / "dora", config={"use_dora": True})
    (tmp_path / "all" / "notes").mkdir()
    refused = registry.add_folder(tmp_path / "all")
    assert set(refused) == {"taken", "base", "bad name", "dora"}
    assert "use_dora" in refused["dora"]
    assert registry.get("good").path == tmp_path / "all" / "good"
    assert [e.name for e in registry.list()] == ["good", "taken"]
    assert sorted(os.listdir(tmp_path / "all" / "good")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(AdapterExists):
        registry.add("good", tmp_path / "1")
    registry.remove("good")
    assert (tmp_path / "all" / "good").exists()
    with pytest.raises(ModelNotFound):
        registry.get("good")
    with pytest.raises(InvalidAdapter):
        registry.add_folder(tmp_path / "none")


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later start takes facts from beside the weights, unless the files in place have changed."""
    open_registry(tmp_path).add("a", write(tmp_path / "1"))
    write(tmp_path / "all" / "b")
    first = open_registry(tmp_path)
    first.add_folder(tmp_path / "all")
    reads = []
    real = read_adapter
    monkeypatch.setattr(module, "read_adapter", lambda *a, **k: reads.append(a[0].name) or real(*a, **k))
    again = open_registry(tmp_path)
    again.add_folder(tmp_path / "all")
    assert again.list() == first.list()
    assert reads == []
    write(tmp_path / "all" / "b", tensors(seed=3))
    os.utime(tmp_path / "all" / "b" / "adapter_model.safetensors", (1, 1))
    again.add_folder(tmp_path / "all")
    assert reads == ["b"]
    assert again.get("b").id != first.get("b").id


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    """Old temporary folders go with the next change."""
    registry = AdapterRegistry(tmp_path / "home", BASE, 32, clock=lambda: time.time() + 7200)
    (tmp_path / "home" / ".tmp-x").mkdir(parents=True)
    registry.add("a", write(tmp_path / "1"))
    assert not list((tmp_path / "home").glob(".tmp-*"))


@pytest.mark.slow
def test_thousands_of_adapters_open_quickly(tmp_path: Path) -> None:
    """3,000 adapters are listed within a second of a start."""
    registry = open_registry(tmp_path)
    folder = write(tmp_path / "1")
    for i in range(3000):
        registry.add(f"a{i}", folder)
    start = time.perf_counter()
    assert len(open_registry(tmp_path).list()) == 3000
    assert time.perf_counter() - start < 1.0
