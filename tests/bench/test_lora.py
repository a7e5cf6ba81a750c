"""`stoa bench lora` end to end on a shape that takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoa.bench import synthetic
from stoa.bench.lora import run
from stoa.errors import ConfigError

TINY = synthetic._llama(64, 2, 4, 2, 96, 300)


def test_a_report_has_a_row_for_each_mode_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row carries the figures that were promised, and adapters cost something."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run("tiny", cache=tmp_path, batches=(1, 3), prompt_tokens=5, output_tokens=4, repeats=1)
    assert [(r["mode"], r["batch"]) for r in report["rows"]] == [
        (m, b) for m in ("base", "same", "distinct") for b in (1, 3)
    ]
    for row in report["rows"]:
        assert row["output_tok_s"] > 0
        assert row["itl_ms_p99"] >= row["itl_ms_p50"] > 0
        assert row["ttft_ms_p50"] > 0
        assert 0 < row["roofline_share"] < 1
        assert row["peak_rss_mb"] > 0


@pytest.mark.parametrize("change", [{"modes": ("none",)}, {"model": "no-such-folder"}])
def test_an_unknown_mode_or_model_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """The message lists what is accepted."""
    with pytest.raises(ConfigError, match=r"base|134m"):
        run(**({"model": "134m", "cache": tmp_path} | change))  # type: ignore[arg-type]


def test_transformers_and_peft_read_what_is_written(tmp_path: Path) -> None:
    """The folders are the ones other engines take."""
    import peft
    import transformers

    synthetic._once(tmp_path / "m", lambda work: synthetic._write_model(TINY, work, 0))
    synthetic.write_adapter(tmp_path / "m" / "config.json", tmp_path / "a", rank=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    assert wrapped.peft_config["default"].r == 3


@pytest.mark.slow
def test_a_gpu_tells_its_own_time_beside_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU (here: its interpreter) each row says how long it worked in a step, and what nothing could be faster than."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run(
        "tiny", cache=tmp_path, batches=(1, 2), modes=("base", "distinct"), prompt_tokens=5, output_tokens=4,
        repeats=1, device="cuda",
    )  # fmt: skip
    assert report["machine"]["copy_gb_s"] > 0
    assert report["model"]["kernels"].startswith("cuda")
    for row in report["rows"]:
        assert "peak_rss_mb" not in row
        assert 0 < row["floor_ms"] < row["gpu_ms_p50"]
        assert row["gpu_ms_p50"] == pytest.approx(row["itl_ms_p50"] * (1 - row["host_share"]), rel=0.01)
