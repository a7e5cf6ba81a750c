"""`stoa plan`: one command from files to a plan, its trial, and what a fleet follows."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from stoa.cli import app
from stoa.errors import StoaError
from stoa.fleet.policies.contract import read_plan
from stoa.fleet.policies.profile import Profile
from stoa.planner.stored import read_stored

pytest.importorskip("highspy", reason="pip install 'stoa[planner]' for the solver")

DOCUMENT = """
[periods]
kind = "day"
step = 12
horizon = "30 d"

[[machine]]
name = "box"
accelerator = "L4"

[[place]]
name = "home"
kind = "owned"
power_price = "0.2 USD/kWh"
machine = [{ type = "box", count = 1 }]

[[place]]
name = "cloud"
kind = "cloud"
buy = ["on_demand"]
machine = [{ type = "box", on_demand = "1 USD/h" }]

[[model]]
name = "m"

[[throughput]]
model = "m"
machines = ["box"]
profile = "profile.json"

[[service]]
name = "chat"
models = ["m"]
ttft = "1 s"

[safety]
margin = 3.0

[demand]
trace = "trace.csv"
until = "1 d"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan")
    (path / "plan.toml").write_text(DOCUMENT)
    profile = Profile(name="box", fixed_s=0.05, prompt_row_s=1e-5, decode_row_s=2e-4, max_num_seqs=6)
    (path / "profile.json").write_bytes(msgspec.json.encode(profile))
    arrival = np.sort(np.random.default_rng(1).uniform(0, 86_400, 60_000))
    lines = [f"{at:.3f},300,90" for at in arrival]
    (path / "trace.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return path


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(folder / "plan.toml"), *options])


def test_a_plan_is_told_and_written(folder: Path, tmp_path: Path) -> None:
    """Words for people on stdout; the plan, a drawing and what a fleet follows in files."""
    out, chart, followed = tmp_path / "plan.json", tmp_path / "plan.svg", tmp_path / "fleet.json"
    found = run(folder, "--out", str(out), "--chart", str(chart), "--apply", str(followed))
    assert found.exit_code == 0, found.output
    assert "home" in found.stdout
    assert "HiGHS" not in found.stdout
    assert read_stored(out).plan.rented
    assert chart.read_text().startswith("<svg")
    assert read_plan(followed).models["m"].targets


def test_facts_and_proof_are_json(folder: Path) -> None:
    """With --json nothing else is on stdout, and a trial's figures are among the facts."""
    found = run(folder, "--json", "--verify", str(folder / "trace.csv"))
    assert found.exit_code == 0, found.output
    facts = json.loads(found.stdout)
    (service,) = facts["proof"]["services"]
    assert service["first_in_time"] >= 0.985
    assert abs(facts["proof"]["cost_error"]) < 0.05


def test_margins_are_learned_from_a_trace(folder: Path) -> None:
    """Tuned on the day it was made from, the plan keeps its promise there."""
    trace = str(folder / "trace.csv")
    found = run(folder, "--tune", trace, "--tune-until", "1d", "--verify", trace, "--until", "1d")
    assert found.exit_code == 0, found.output
    assert "kept" in found.stdout


def test_a_plan_that_does_not_hold_ends_with_1(folder: Path, tmp_path: Path) -> None:
    """A trace with three times the demand shows that the plan is too small."""
    lines = (folder / "trace.csv").read_text().splitlines()
    (tmp_path / "more.csv").write_text("\n".join([lines[0], *(line for line in lines[1:] for _ in range(3))]))
    found = run(folder, "--verify", str(tmp_path / "more.csv"))
    assert found.exit_code == 1
    assert "MISSED" in found.stdout


def test_an_old_plan_stays_unless_enough_is_saved(folder: Path, tmp_path: Path) -> None:
    """The same inputs again change nothing, and that is said."""
    out = tmp_path / "plan.json"
    assert run(folder, "--out", str(out)).exit_code == 0
    before = read_stored(out).plan.rented
    again = run(folder, "--old", str(out), "--out", str(out))
    assert again.exit_code == 0, again.output
    assert read_stored(out).plan.rented == before


def test_demand_beyond_all_machines_says_what_would_help(folder: Path, tmp_path: Path) -> None:
    """A typed error with the cheapest changes that would allow a plan."""
    for name in ("profile.json", "trace.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    limited = DOCUMENT.replace('on_demand = "1 USD/h" }', 'on_demand = "1 USD/h", limit = 0 }')
    (tmp_path / "plan.toml").write_text(limited.replace("until", "scale = 20\nuntil"))
    found = run(tmp_path)
    assert isinstance(found.exception, StoaError)
    assert "What would allow a plan" in found.exception.message


def test_manifests_are_exported(folder: Path, tmp_path: Path) -> None:
    """One folder of files for each tool."""
    for kind in ("kubernetes", "ray", "skypilot"):
        found = run(folder, "--export", kind, "--to", str(tmp_path / kind))
        assert found.exit_code == 0, found.output
        assert list((tmp_path / kind).iterdir())
