"""Plans for tests: a day of two halves, an office with owned machines, a cloud, and whatever else a test asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stoa.fleet.policies.contract import FleetPlan, parse_plan
from stoa.fleet.policies.modelplan import ModelPlan

MODEL = "demo"
EVERY_DAY = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
HALVES = [
    {"name": "night", "hours": [{"days": EVERY_DAY, "start": "00:00", "end": "12:00"}]},
    {"name": "day", "hours": [{"days": EVERY_DAY, "start": "12:00", "end": "24:00"}]},
]
ALWAYS = [{"name": "always", "hours": [{"days": EVERY_DAY, "start": "00:00", "end": "24:00"}]}]
NOON_S = 12 * 3600.0  # of 1 January 1970, a Thursday
CLINIC = {"name": "clinics", "projects": ["clinic"], "places": ["office"]}
OTHERS = {"name": "others", "projects": ["*"], "places": ["*"]}
GUARDED = [CLINIC, OTHERS]


def words(section: Mapping[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    """A file as it would be written by hand; `section`: of the model."""
    whole = {
        "version": 1,
        "periods": ALWAYS,
        "places": [{"name": "office", "zones": ["local"]}, {"name": "cloud", "zones": ["a", "b"]}],
        "models": {MODEL: dict(section or {})},
    }
    return whole | parts


def fleet_plan(section: Mapping[str, Any] | None = None, **parts: Any) -> FleetPlan:
    return parse_plan(msgspec.json.encode(words(section, **parts)), "test")


def model_plan(section: Mapping[str, Any] | None = None, **parts: Any) -> ModelPlan:
    return ModelPlan.of(fleet_plan(section, **parts), MODEL, read_s=1.0)


def target(
    place: str, market: str, replicas: Sequence[int], most: int | None = None, machine: str = "L4"
) -> dict[str, Any]:
    return {"place": place, "machine": machine, "market": market, "replicas": list(replicas), "most": most}
