"""What is exported to Ray's cluster launcher fits Ray's own schema, and what the fleet reads back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stoa.fleet.cluster.machines import Machine
from stoa.planner.export.ray import export
from tests.planner import hybrid
from tests.planner.export.test_kubernetes import at_provider
from tests.planner.hybrid import SMALL

CLOUD, OWN = "ray-ours-ireland.yaml", "ray-ours-cellar.yaml"


def exported(period: int | None = None, problem: Any = None) -> dict[str, Any]:
    at = problem or hybrid.problem()
    return {name: yaml.safe_load(text) for name, text in export(hybrid.plan(at), at, period).items()}


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    import ray.autoscaler  # slow to import

    path = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("period", [None, 0, 1])
def test_clusters_fit_the_schema(schema: jsonschema.Draft7Validator, period: int | None) -> None:
    """One for each place that the period uses, whatever the provider."""
    found = exported(period)
    for provider in ("gcp", "azure"):
        found |= {
            provider + k: v for k, v in exported(period, at_provider(provider, "r-1", SMALL, "L4")).items()
        }
    for cluster in found.values():
        schema.validate(cluster)
    assert (CLOUD in found) is (period != 0)


def test_types_of_nodes_are_ways_of_buying() -> None:
    """With the plan's least, and what it leaves room for; of one period, just its counts."""
    for period, counts in {
        None: {"g6-xlarge-on-demand": (0, 10), "g6-xlarge-reserved": (0, 2), "g6-xlarge-spot": (0, 8)},
        1: {"g6-xlarge-reserved": (2, 2), "g6-xlarge-spot": (3, 3)},
    }.items():
        cluster = exported(period)[CLOUD]
        types = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}
        assert {k: (v["min_workers"], v["max_workers"]) for k, v in types.items()} == counts
        assert cluster["max_workers"] == sum(most for _, most in counts.values())
        spot = types["g6-xlarge-spot"]
        assert spot["resources"] == {"GPU": 1}
        assert spot["node_config"] == {"InstanceType": SMALL, "InstanceMarketOptions": {"MarketType": "spot"}}
        machine = Machine("id", "address", spot["labels"], {}, {})
        assert (machine.zone, machine.market) == ("ireland", "spot")
    assert cluster["provider"] == {"type": "aws", "region": "eu-west-1"}


def test_own_machines_are_to_be_filled_in() -> None:
    """As many as the plan has; they say themselves where they are and what they have."""
    cluster = exported()[OWN]
    assert cluster["provider"] == {"type": "local", "head_ip": "HEAD", "worker_ips": ["HOST-1", "HOST-2"]}
    start = cluster["worker_start_ray_commands"][1]
    assert "--num-gpus=2" in start
    assert "stoa.io/zone=cellar" in start


@pytest.mark.parametrize(
    ("provider", "config"),
    [
        ("gcp", {"machineType": SMALL, "scheduling": {"provisioningModel": "SPOT"}}),
        ("azure", {"azure_arm_parameters": {"vmSize": SMALL, "priority": "Spot"}}),
    ],
)
def test_providers_have_their_own_words(provider: str, config: dict[str, Any]) -> None:
    """For machines and markets."""
    cluster = exported(1, at_provider(provider, "eu-west-1", SMALL, "L4"))[CLOUD]
    assert cluster["available_node_types"]["g6-xlarge-spot"]["node_config"] == config


def test_a_place_without_a_known_cloud_is_ones_own() -> None:
    """Rather than a guess."""
    at = hybrid.problem()
    nameless = replace(at, places=tuple(replace(p, labels=frozenset({"cloud"})) for p in at.places))
    assert exported(1, nameless)[CLOUD]["provider"]["type"] == "local"
