"""benchmarks/gpu.md: figures come from files alone, and floors are reckoned, not typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.gpu_report import NOT_MEASURED, PAGE, step_bytes, write

LORA = [
    {"mode": mode, "batch": batch, "itl_ms_p50": ms, "roofline_share": 0.7}
    for mode, ms in (("base", 4.0), ("distinct", 5.0))
    for batch in (1, 32, 64)
]


def test_the_page_is_what_the_script_writes_without_results(tmp_path: Path) -> None:
    """Nobody has typed a figure in."""
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text())
    write(Path(PAGE.parent.parent / "docs" / "results"), page)
    assert page.read_text() == PAGE.read_text()


def test_what_was_measured_stands_in_the_table_and_nothing_else(tmp_path: Path) -> None:
    """A part that failed is a part that was not measured."""
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text())
    (tmp_path / "gpu-lora.json").write_text(json.dumps({"parts": {"bf16": {"rows": LORA}}}))
    (tmp_path / "gpu-kernels.json").write_text(json.dumps({"parts": {"bf16": {"failed": "exit status 1"}}}))
    rows = [{"output_tok_s": 900.0}]
    peft = {"stoa": {"rows": rows}, "eager": {"rows": [{"output_tok_s": 30.0}]},
            "compiled": {"rows": [{"output_tok_s": 60.0}]}}  # fmt: skip
    (tmp_path / "gpu-peft.json").write_text(json.dumps({"parts": peft}))
    write(tmp_path, page)
    text = page.read_text()
    assert "| decode, batch 32, an adapter each, against base | 0.8 | 0.93 | 0.8 |" in text
    assert "times transformers + PEFT | 8 | 20 | 15 |" in text
    assert (
        f"| LoRA kernels alone, batch 1, share of bytes / bandwidth | 0.5 | 0.75 | {NOT_MEASURED} |" in text
    )


def test_a_trial_without_a_gpu_is_no_figure(tmp_path: Path) -> None:
    """What `--small` has written is refused."""
    (tmp_path / "gpu-lora.json").write_text(json.dumps({"about": {"small": True}, "parts": {}}))
    with pytest.raises(SystemExit, match="trial without a GPU"):
        write(tmp_path, tmp_path / "gpu.md")


def test_bytes_of_a_step_are_those_of_the_shape() -> None:
    """Llama-3.1-8B: 7.5 billion parameters in linears and head, 128 KiB a token, 84 MB an adapter of rank 16."""
    weights, kv, adapters = step_bytes("8b", 2, 10, 16)
    assert weights == 2 * (32 * 218_103_808 + 525_336_576)
    assert kv == 2 * 10 * 131_072
    assert adapters == pytest.approx(2 * 83.9e6, rel=1e-3)
