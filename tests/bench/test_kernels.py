"""`stoa bench kernels` in Triton's interpreter: every kind of a step is there, and the filter lets no other through."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoa.bench import synthetic
from stoa.bench.kernels import KINDS, _only, run
from stoa.engine.kernels.cuda import elementwise, lora
from stoa.errors import ConfigError
from tests.bench.test_lora import TINY


@pytest.mark.slow
def test_a_step_is_accounted_for_kind_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind has a time, and a floor where it must read something; steps with adapters read more than base ones."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run("tiny", cache=tmp_path, batches=(1, 2), context=20, rank=3, repeats=1)
    rows = {(row["kind"], row["batch"]): row for row in report["rows"]}
    names = [*KINDS, "step, base", "step, distinct", "linears by torch"]
    assert list(rows) == [(name, batch) for batch in (1, 2) for name in names]
    assert all(row["ms"] > 0 for row in rows.values())
    assert {name for name, batch in rows if rows[name, batch]["share"] != ""} >= {
        "linears",
        "head",
        "lora",
        "attention",
    }
    for batch in (1, 2):
        whole, base, lora_only = (
            rows[name, batch]["gb"] for name in ("step, distinct", "step, base", "lora")
        )
        assert whole == pytest.approx(base + lora_only, abs=2e-4)


def test_kernels_are_known_by_their_file() -> None:
    """One of another file is not started."""
    started = []

    def launch(kernel: object, *args: object, **options: object) -> None:
        started.append(kernel)

    some = _only(("lora",), launch)  # type: ignore[arg-type]
    some(lora._shrink, (1,), warps=1, stages=1)
    some(elementwise._rms_norm, (1,), warps=1, stages=1)
    assert started == [lora._shrink]


def test_what_is_no_gpu_or_no_model_is_refused(tmp_path: Path) -> None:
    """By name, before anything is made."""
    with pytest.raises(ConfigError, match="accepted for this benchmark: cuda"):
        run("8b", cache=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"134m, 1.1b, 8b"):
        run("none", cache=tmp_path)
