"""`stoa bench` refuses what it could not measure, before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stoa.cli import app
from stoa.errors import ConfigError


@pytest.mark.parametrize(
    "asked",
    [
        "failover --rounds 0", "failover --streams 0", "failover --output-tokens 1", "lora --batch 0",
        "lora --repeats 0", "adapters --registered 0", "adapters --requests 0", "adapters --at-once 0",
        "fairness --seconds 0", "fairness --per-s 0", "fairness --backlog 0", "gateway --connections 0",
        "prefix trace.jsonl --requests 1", "router --seeds 0", "router --replicas 1", "router --each 23",
        "router --load 0", "profile --repeats 0", "coldstart --repeats 0",
    ],
)  # fmt: skip
def test_numbers_that_measure_nothing_are_refused(asked: str) -> None:
    """By the option's name."""
    result = CliRunner().invoke(app, ["bench", *asked.split()])
    assert result.exit_code == 2
    assert asked.split()[-2] in result.output


@pytest.mark.parametrize("command", ["lora", "profile", "coldstart"])
def test_kinds_of_weights_are_refused_in_the_words_of_serve(command: str) -> None:
    """With what is accepted."""
    result = CliRunner().invoke(app, ["bench", command, "--quantize", "int3"])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message == "command line: quantize is 'int3'; accepted: none, int8, int4"


def test_a_profile_that_cannot_be_written_is_not_measured(tmp_path: Path) -> None:
    """It would take minutes."""
    path = tmp_path / "none" / "profile.json"
    result = CliRunner().invoke(app, ["bench", "profile", "--out", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message == f"--out {path}: there is no folder {path.parent}"
