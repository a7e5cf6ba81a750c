"""`stoa simulate` refuses what would never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from stoa.cli import app
from stoa.errors import ConfigError
from tests.simulator.worlds import profile


def simulate(folder: Path, *more: str, last_s: float = 60.0) -> Any:
    """Ten requests, and one at `last_s`."""
    rows = "".join(f"{at},100,10\n" for at in (*range(10), last_s))
    (folder / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    (folder / "profile.json").write_bytes(msgspec.json.encode(profile()))
    needed = [str(folder / "trace.csv"), "--profile", str(folder / "profile.json"), "--on-demand-hourly", "3"]
    return CliRunner().invoke(
        app, ["simulate", *needed, "--policy", "static-peak", "--set", "replicas=1", *more]
    )


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--until-s", ["nan", "inf", "-1", "1e15"]),
        ("--measure-from-s", ["nan", "inf", "-1"]),
        ("--idle-s", ["nan", "inf"]),
        ("--tick-s", ["nan", "inf", "1e-9"]),
        ("--startup-s", ["nan", "1e15"]),
        ("--notice-s", ["nan", "inf"]),
        ("--jitter-s", ["nan", "inf"]),
        ("--spot-offset-s", ["nan", "inf"]),
        ("--startup-spread", ["nan", "-1", "2"]),
        ("--ttft-s", ["nan", "inf", "0"]),
        ("--attainment", ["nan", "0", "2"]),
        ("--rate", ["nan", "inf", "0"]),
        ("--max-replicas", ["0", "-1"]),
        ("--min-replicas", ["-1", "1001"]),
        ("--order", ["chance", ""]),
        ("--drain", ["never"]),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, flag: str, values: list[str]) -> None:
    """By name, and with what is accepted."""
    for value in values:
        result = simulate(tmp_path, flag, value)
        assert result.exit_code != 0, value
        said = str(getattr(result.exception, "message", result.output))
        assert flag[2:].replace("-", "_") in said
        assert "accepted: " in said


@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path, flag: str) -> None:
    """A folder that does not exist, and a file where a folder should be; nothing has been simulated then."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "x", tmp_path / "file" / "x", tmp_path):
        result = simulate(tmp_path, flag, str(path), last_s=float("nan"))
        assert isinstance(result.exception, ConfigError)
        assert result.exception.message.startswith(f"{flag} {path}: ")


def test_nothing_is_counted_from_the_end_on(tmp_path: Path) -> None:
    """`--measure-from-s` comes before `--until-s`."""
    result = simulate(tmp_path, "--measure-from-s", "30", "--until-s", "30")
    assert isinstance(result.exception, ConfigError)
    assert "measure_from_s is 30.0; accepted: below until_s, 30.0" in result.exception.message


@pytest.mark.parametrize("last_s", [1e15, 3.2e8, float("inf"), float("nan")])
def test_a_request_in_ages_is_an_error_of_the_trace(tmp_path: Path, last_s: float) -> None:
    """With its line; nobody waits ten years for it."""
    result = simulate(tmp_path, last_s=last_s)
    assert result.exit_code != 0
    assert "line 12" in result.exception.message
    assert "ten years" in result.exception.message


@pytest.mark.parametrize("order", ["deadline", "arrival"])
def test_waiting_requests_go_in_either_order(tmp_path: Path, order: str) -> None:
    """Both run."""
    result = simulate(tmp_path, "--order", order, "--json")
    assert result.exit_code == 0, result.output
