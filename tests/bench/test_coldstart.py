"""`stoa bench coldstart` on a shape that loads at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoa.bench import coldstart, synthetic
from stoa.bench.coldstart import run

TINY = synthetic._llama(64, 2, 4, 2, 96, 300)


@pytest.mark.slow
def test_a_report_breaks_each_kind_of_start_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages add up to the whole; what was imported before costs nothing; the floor is what it says."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run("tiny", cache=tmp_path, repeats=1)
    floor = report["floor"]
    assert floor["imports_s"] > floor["interpreter_s"] > 0
    assert floor["floor_s"] == pytest.approx(floor["imports_s"] + floor["read_s"], abs=0.002)
    rows = {row["start"]: row for row in report["rows"]}
    assert list(rows) == ["packs", "maps", "spare"]
    for row in rows.values():
        stages = [v for k, v in row.items() if k.endswith("_s") and k != "whole_s"]
        assert sum(stages) == pytest.approx(row["whole_s"], abs=0.01)
    assert rows["maps"]["torch_s"] > 0
    assert "torch_s" not in rows["spare"]
    assert rows["spare"]["whole_s"] < rows["maps"]["whole_s"]


def test_reading_reads_every_byte(tmp_path: Path) -> None:
    """Files longer than the buffer too."""
    path = tmp_path / "x"
    path.write_bytes(b"1" * (coldstart._CHUNK_BYTES + 1))
    assert coldstart._read([path]) > 0
