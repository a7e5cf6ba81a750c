"""`stoa simulate`: what it reads, prints, writes and refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from stoa.cli import app
from stoa.errors import ConfigError
from stoa.fleet.policies.facts import Slo
from stoa.simulator import Zone, simulate
from stoa.simulator.baselines import Both, Hpa, SpotHedge
from stoa.simulator.choice import PLACEMENTS, SCALERS, choose_policy
from stoa.simulator.plot import draw
from stoa.simulator.scenario import read_profile, read_zones
from tests.simulator.worlds import Constant, poisson, profile

NEEDED = {
    "static-peak": ["replicas=1"],
    "hpa": ["target_in_flight=4"],
    "request-rate": ["target_qps_per_replica=2"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trace of ten minutes, a profile, a spot trace and a list of zones."""
    trace = poisson(1.0, 600, seed=1)
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    lines = "".join(f"{a:.3f},{p},{o}\n" for a, p, o in rows)
    (tmp_path / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + lines)
    (tmp_path / "profile.json").write_bytes(msgspec.json.encode(profile()))
    (tmp_path / "east.json").write_text('{"metadata": {"gap_seconds": 60}, "data": [1, 1, 1, 0, 1]}')
    zone = {"name": "east", "on_demand_hourly": 3.0, "spot_hourly": 1.0, "spot": "east.json", "startup_s": 20}
    (tmp_path / "zones.json").write_text(json.dumps([zone, {"name": "west", "on_demand_hourly": 3.1}]))
    return tmp_path


def invoke(folder: Path, *more: str, policy: str = "static-peak") -> Any:
    common = [str(folder / "trace.csv"), "--profile", str(folder / "profile.json"), "--policy", policy]
    common += ["--set", "replicas=2"] if policy.startswith("static-peak") else []
    return CliRunner().invoke(app, ["simulate", *common, *more])


def test_figures_are_printed_and_written(folder: Path) -> None:
    """For people, as JSON, and as a drawing that is well-formed."""
    out, plot = folder / "out.json", folder / "out.svg"
    files = ["--out", str(out), "--plot", str(plot)]
    result = invoke(folder, "--on-demand-hourly", "3", "--json", *files)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    written = json.loads(out.read_text())
    assert printed["cost_usd"] == written["cost_usd"] > 0
    assert len(written["timeline"]["t_s"]) == len(written["timeline"]["hourly_usd"]) > 50
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")
    assert "attainment" in invoke(folder, "--on-demand-hourly", "3").output


def test_zones_come_from_a_file_or_from_spot_traces(folder: Path) -> None:
    """Spot machines are used, and go when there are fewer."""
    by_file = invoke(folder, "--zones", str(folder / "zones.json"), "--json", policy="static-peak+spot-hedge")
    by_flags = invoke(
        folder, "--on-demand-hourly", "3", "--spot-hourly", "1", "--spot", str(folder / "east.json"), "--startup-s",
        "20", "--notice-s", "5", "--json", policy="static-peak+spot-hedge",
    )  # fmt: skip
    for result in (by_file, by_flags):
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["cost"]["spot"] > 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--on-demand-hourly"),
        (["--spot-hourly", "1", "--spot", "absent.json"], "absent.json"),
        (["--on-demand-hourly", "3", "--drain", "never"], "migrate, finish"),
        (["--on-demand-hourly", "3", "--tick-s", "0"], "tick_s"),
        (["--on-demand-hourly", "3", "--rate", "-1"], "rate"),
        (["--on-demand-hourly", "-3"], "on_demand_capacity of zone 'zone' must be 0 or above"),
        (["--on-demand-hourly", "3", "--set", "no=1"], "no parameter no"),
        (["--on-demand-hourly", "3", "--set", "replicas=many"], "replicas"),
        (["--on-demand-hourly", "3", "--set", "replicas"], "FIELD=VALUE"),
        (["--on-demand-hourly", "3", "--spot", "x.json"], "--spot-hourly"),
    ],
)
def test_what_cannot_be_simulated_is_refused(folder: Path, more: list[str], says: str) -> None:
    """The message says what would be accepted."""
    result = invoke(folder, *more)
    assert result.exit_code != 0
    assert says in str(getattr(result.exception, "message", result.output))


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_policy_has_a_name(scaler: str, placement: str) -> None:
    """And runs with its own defaults, but for what it needs to be told."""
    policy = choose_policy(f"{scaler}+{placement}", NEEDED.get(scaler, []))
    zones = [Zone("a", 3.0, 1.0, None, 20.0)]
    result = simulate([poisson(1.0, 200, seed=1)], zones, profile(), policy, slo=Slo(2.0))
    assert result.requests == 200


def test_parameters_go_to_the_part_that_has_them() -> None:
    """Text becomes what the field is."""
    policy = choose_policy("hpa+spot-hedge", ["target-in-flight=7.5", "up_pods=3"])
    assert isinstance(policy, Both)
    assert isinstance(policy.placement, SpotHedge)
    assert policy.scaler == Hpa(target_in_flight=7.5, up_pods=3)


def test_an_unknown_parameter_is_named_before_one_that_is_missing() -> None:
    """With those there are: most likely it is the missing one, misspelt."""
    with pytest.raises(ConfigError, match=r"'hpa' has no parameter foo; accepted: .*target_in_flight"):
        choose_policy("hpa", ["foo=1"])


@pytest.mark.parametrize("name", ["", "hpa+moon", "moon", "elastic+on-demand"])
def test_an_unknown_policy_is_refused_by_name(name: str) -> None:
    """With the names there are."""
    with pytest.raises(ConfigError, match="accepted"):
        choose_policy(name)


@pytest.mark.parametrize(
    "text",
    [
        "[", "{}", "[]", '[{"name": "a"}]', '[{"name": "a", "on_demand_hourly": 1, "moon": 2}]',
        '[{"name": "a", "on_demand_hourly": 1}, {"name": "a", "on_demand_hourly": 1}]',
        '[{"name": "a", "on_demand_hourly": -1}]', '[{"name": "a", "spot_hourly": 1, "startup_s": -1}]',
    ],
)  # fmt: skip
def test_impossible_zones_are_refused(tmp_path: Path, text: str) -> None:
    """With what would be accepted."""
    (tmp_path / "zones.json").write_text(text)
    with pytest.raises(ConfigError):
        read_zones(tmp_path / "zones.json")


@pytest.mark.parametrize(
    "change",
    [
        {"fixed_s": -1}, {"fixed_s": 0.0}, {"max_num_seqs": 0}, {"kv_tokens": 0}, {"name": None},
        {"max_batch_tokens": 0}, {"decode_row_s": "fast"}, {"load_s": -1},
    ],
)  # fmt: skip
def test_an_impossible_profile_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A step takes time, and some sequence fits."""
    facts = msgspec.to_builtins(profile()) | change
    (tmp_path / "profile.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError):
        read_profile(tmp_path / "profile.json")


def test_a_drawing_of_nothing_is_a_drawing() -> None:
    """No request, no machine: three empty panels; names are escaped."""
    result = simulate([], [Zone("a", 3.0)], profile(), Constant(0), slo=Slo(2.0), until_s=10.0)
    text = draw(result, "<nothing & nobody>")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "nan" not in text
