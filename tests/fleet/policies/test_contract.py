"""A plan's file says all that a fleet needs, or why it cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoa.errors import ConfigError
from stoa.fleet.policies.contract import FleetPlan, parse_plan, read_plan, write_plan
from stoa.fleet.policies.modelplan import ModelPlan
from tests.fleet.policies.plans import GUARDED, HALVES, MODEL, fleet_plan, model_plan, target, words

WHOLE = {
    "targets": [target("office", "owned", [2, 2], 2), target("cloud", "spot", [0, 3], 5)],
    "weights": [
        {
            "groups": ["others"],
            "places": {"office": [1, 0.4], "cloud": [0, 0.5]},
            "remotes": {"there": [0, 0.1]},
        }
    ],
    "overflow": [{"remote": "there", "groups": ["others"], "wait_s": 2, "most_share": 0.2}],
    "daily_usd": {"there": 20},
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """The same plan comes back, and no half of a file is ever there."""
    plan = fleet_plan(WHOLE, periods=HALVES, groups=GUARDED, time_zone="Europe/Berlin", made="by hand")
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=FleetPlan) == plan


def test_a_plan_is_asked_by_zone_and_project() -> None:
    """A place's own name is one of its zones; projects that no group names are the others."""
    plan = model_plan(WHOLE, periods=HALVES, groups=GUARDED)
    assert [plan.place_of(zone) for zone in ("local", "office", "b", "elsewhere", "")] == [
        "office", "office", "cloud", "", "",
    ]  # fmt: skip
    assert (plan.group_of("clinic"), plan.group_of("anybody")) == ("clinics", "others")
    assert (plan.confines("clinic"), plan.confines("anybody")) == (frozenset({"office"}), None)
    assert plan.remotes == {"there"}


def test_rules_name_projects_by_patterns() -> None:
    """Also those that are made later; every rule that fits must be kept, and the group's word too."""
    rules = [
        {"name": "patients", "projects": ["clinic-*", "lab"], "places": ["office"]},
        {"name": "law", "projects": ["*-2"], "places": ["office", "cloud"]},
        {"name": "none", "projects": ["x"], "places": []},
    ]
    plan = model_plan(rules=rules, groups=[*GUARDED[:1], {**GUARDED[1], "places": ["cloud"]}])
    for project, places in {
        "clinic-new": set(), "lab": set(), "y-2": {"cloud"}, "x": set(), "z": {"cloud"}, "clinic": {"office"},
    }.items():  # fmt: skip
        assert plan.confines(project) == places
    free = model_plan(rules=rules)
    assert (free.confines("clinic-2"), free.confines("z")) == ({"office"}, None)


def test_zones_of_a_region_are_known_by_their_names() -> None:
    """As clouds name them; what only looks alike is somewhere else."""
    regions = ["eu-west-1", "us-central1", "westeurope"]
    plan = model_plan(places=[{"name": "cloud", "regions": regions}, {"name": "office"}])
    inside = ["eu-west-1", "eu-west-1a", "us-central1-b", "westeurope-2"]
    outside = ["eu-west-10", "eu-west-2a", "eu-west-1-bos-1a", "us-central12", "westeurope2", "a", ""]
    assert [plan.place_of(zone) for zone in inside] == ["cloud"] * 4
    assert [plan.place_of(zone) for zone in outside] == [""] * 7


def test_markets_of_a_place_are_two() -> None:
    """Owned, reserved and on-demand machines are alike to a fleet: nobody takes them back."""
    targets = [
        target("cloud", m, [1], most) for m, most in (("reserved", 1), ("on_demand", 4), ("spot", None))
    ]
    pools = {p.market: (p.replicas, p.most) for p in model_plan({"targets": targets}).pools}
    assert pools == {"on_demand": ((2,), 5), "spot": ((1,), float("inf"))}


def test_a_fleet_has_one_kind_of_machine() -> None:
    """Where the plan has several, the fleet says which one is its own."""
    both = [target("cloud", "spot", [1]), target("cloud", "spot", [2], machine="H100")]
    plan = fleet_plan({"targets": both})
    with pytest.raises(ConfigError, match="--machine H100 or L4"):
        ModelPlan.of(plan, MODEL, machine="default")
    assert ModelPlan.of(plan, MODEL, machine="H100").pools[0].replicas == (2,)
    with pytest.raises(ConfigError, match="no model 'other'; it has demo"):
        ModelPlan.of(plan, "other")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version is 2; accepted: 1"),
        ({"periods": []}, "none is there from mon 00:00"),
        ({"surprise": 1}, "surprise"),
        ({"time_zone": "Mars"}, "time_zone is 'Mars'"),
        ({"places": [{"name": "a"}, {"name": "b", "zones": ["a"]}]}, "the zone 'a' stands twice"),
        ({"places": [{"name": "remote:x"}]}, "no name for a place"),
        ({"places": [{"name": "local"}]}, "machines that do not say where they are"),
        (
            {"groups": [{"name": "g", "projects": ["*", "proj_*"], "places": ["*"]}]},
            "accepted: ids; patterns stand in rules",
        ),
        ({"groups": [{"name": "g", "projects": ["*", "p "], "places": ["*"]}]}, "names the project 'p '"),
        ({"rules": [{"name": "r", "projects": ["p[1"], "places": []}]}, "names the project 'p\\[1'"),
        ({"rules": [{"name": "r", "projects": [], "places": []}]}, "rule r names no projects"),
        ({"groups": [{"name": "g", "projects": ["p"], "places": ["*"]}]}, r'give one the project "\*"'),
        ({"groups": [{"name": "g", "projects": ["*"], "places": ["moon"]}]}, "place 'moon'; accepted:"),
        (
            {"groups": [*GUARDED, {"name": "g", "projects": ["clinic"], "places": []}]},
            "project 'clinic' stands",
        ),
    ],
)
def test_wrong_plans_are_refused(change: dict[str, Any], why: str) -> None:
    """The message names the file and what is wrong there."""
    with pytest.raises(ConfigError, match=f"(?s)plan.json: .*{why}"):
        parse_plan(msgspec.json.encode(words(**change)), "plan.json")


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"targets": [target("moon", "spot", [1])]}, "place 'moon'"),
        ({"targets": [target("cloud", "spot", [1, 2])]}, "2 entries for 1 periods"),
        ({"targets": [target("cloud", "spot", [3], 2)]}, "replicas is 3; accepted: 0 to 2"),
        ({"targets": [target("cloud", "lent", [3])]}, "lent"),
        ({"targets": [target("cloud", "spot", [1])] * 2}, "stands twice"),
        ({"weights": [{"groups": ["clinics"], "places": {"cloud": [1]}}]}, "where it may not be served"),
        ({"weights": [{"places": {"office": [1]}}] * 2}, "stand twice"),
        ({"weights": [{"places": {"office": [-1]}}]}, "is -1"),
        ({"overflow": [{"remote": "there", "groups": ["nobody"]}]}, "group 'nobody'"),
        ({"overflow": [{"remote": "there", "most_share": 1.5}]}, "most_share is 1.5; accepted: 0 to 1"),
        ({"daily_usd": {"there": -1}}, "is -1"),
    ],
)
def test_wrong_sections_are_refused(section: dict[str, Any], why: str) -> None:
    """Before anything of them is followed."""
    with pytest.raises(ConfigError, match=why):
        fleet_plan(section, groups=GUARDED)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """One that is missing, and one that breaks off."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="stoa plan --apply"):
        parse_plan(b'{"version": 1, "periods": [', "plan.json")
