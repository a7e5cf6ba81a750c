"""What is exported to SkyPilot has the fields that its documentation knows, and numbers that SkyServe takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stoa.planner.export.skypilot import export
from stoa.planner.plan import Plan
from tests.planner import hybrid
from tests.planner.hybrid import SMALL

SCHEMA = jsonschema.Draft7Validator(
    json.loads((Path(__file__).parent / "schemas" / "skypilot.json").read_text())
)
CLOUD, OWN = "skypilot-ours--g6-xlarge.yaml", "skypilot-ours--box--cellar.yaml"


def exported(provider: str = "aws", plan: Plan | None = None) -> dict[str, Any]:
    files = export(plan or hybrid.plan(), hybrid.problem(), hybrid.facts(provider))
    return {name: yaml.safe_load(text) for name, text in files.items()}


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_services_have_documented_fields(provider: str) -> None:
    """And keep the rules beyond fields: two different numbers of replicas need a rate; fallbacks need spot."""
    for service in exported(provider).values():
        SCHEMA.validate(service)
        policy = service["service"]["replica_policy"]
        assert policy["min_replicas"] <= policy["max_replicas"]
        assert ("target_qps_per_replica" in policy) is (policy["min_replicas"] < policy["max_replicas"])
        assert ("base_ondemand_fallback_replicas" in policy) is service["resources"]["use_spot"]


def test_a_cloud_is_one_service_of_spot_with_others_beside() -> None:
    """Its replicas are the plan's; two of the five are never spot."""
    plan = hybrid.plan()
    always = replace(plan, rented=tuple(replace(r, counts=r.counts[1:] * 2) for r in plan.rented))
    service = exported(plan=always)[CLOUD]
    assert service["service"]["replica_policy"] == {
        "min_replicas": 5, "max_replicas": 5, "base_ondemand_fallback_replicas": 2, "dynamic_ondemand_fallback": True,
    }  # fmt: skip
    assert service["resources"]["any_of"] == [
        {"infra": "aws/eu-west-1", "accelerators": {"L4": 1}, "instance_type": SMALL}
    ]


def test_replicas_are_expected_to_take_what_is_planned() -> None:
    """Six requests a second of the day, at five replicas."""
    policy = exported()[CLOUD]["service"]["replica_policy"]
    assert (policy["min_replicas"], policy["max_replicas"]) == (0, 5)
    assert policy["target_qps_per_replica"] == pytest.approx(12 * 0.5 / 5)


def test_own_machines_are_a_pool() -> None:
    """Fixed, and not on any market."""
    service = exported()[OWN]
    assert service["resources"]["any_of"] == [{"infra": "ssh/cellar", "accelerators": {"L40S": 2}}]
    assert service["resources"]["use_spot"] is False
    assert service["service"]["replica_policy"] == {"min_replicas": 2, "max_replicas": 2}


def test_without_spot_there_is_no_fallback() -> None:
    """SkyServe refuses one."""
    plan = hybrid.plan()
    lasting = replace(plan, rented=tuple(r for r in plan.rented if r.purchase != "spot"))
    policy = exported(plan=lasting)[CLOUD]["service"]["replica_policy"]
    assert policy.keys() == {"min_replicas", "max_replicas", "target_qps_per_replica"}
