"""What docs/planner-live.md says of a plan's file is so."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from stoa.fleet.policies.contract import FleetPlan, Section, parse_plan
from stoa.fleet.policies.modelplan import ModelPlan

PAGE = (Path(__file__).parents[3] / "docs" / "planner-live.md").read_text()


def test_the_example_can_be_followed() -> None:
    """As it stands there."""
    found = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    plan = ModelPlan.of(parse_plan(found[1], "the page"), "ours")
    assert plan.confines("proj_clinic_9") == {"cellar"}
    assert plan.place_of("eu-west-1b") == "ireland"


def test_every_key_is_described() -> None:
    """Of the file, and of a model's section."""
    keys = {f.name for kind in (FleetPlan, Section) for f in msgspec.structs.fields(kind)} - {"made"}
    assert all(re.search(rf"\| .*`{key}`.* \|", PAGE) for key in keys), keys
