"""`stoa bench adapters` with more adapters than folders, on the CPU and in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoa.bench import synthetic
from stoa.bench.adapters import run
from stoa.bench.folders import adapter_refs, model_folder
from stoa.errors import ConfigError
from tests.bench.test_lora import TINY


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_many_adapters_come_from_few_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """All are in host memory before the clock starts, none is read after, and a small pool places some again."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run(
        "tiny", cache=tmp_path, counts=(2, 9), requests=8, at_once=2, prompt_tokens=3, output_tokens=2, rank=4,
        pool_gib=300_000 / (1 << 30), host_gib=0.01, device=device, folders=2, preload=True, cold=False,
    )  # fmt: skip
    few, many = report["rows"]
    assert (few["adapters"], many["adapters"]) == (2, 9)
    assert many["loads"] == 0
    assert many["placed"] > 0
    assert many["distinct"] > 2
    assert ("send_floor_s" in many) == (device == "cuda")


def test_the_same_bytes_under_another_name_are_another_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids differ, and the content that they promise is that of the folder."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    refs = adapter_refs(model_folder("tiny", tmp_path), 5, 2, tmp_path, folders=2)
    assert len({ref.id for ref in refs}) == 5
    assert len({ref.path for ref in refs}) == 2
    assert {ref.id.rpartition(":")[2] for ref in refs} == {refs[0].id, refs[1].id}


def test_adapters_that_do_not_fit_host_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than measured as if they did."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    with pytest.raises(ConfigError, match="raise host_gib"):
        run("tiny", cache=tmp_path, counts=(9,), folders=2, preload=True, host_gib=1e-4, pool_gib=0.01)
