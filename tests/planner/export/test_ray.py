"""What is exported to Ray's cluster launcher fits Ray's own schema, and what the fleet reads back."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stoa.fleet.cluster.machines import Machine
from stoa.planner.export.ray import export
from tests.planner import hybrid
from tests.planner.hybrid import SMALL

CLOUD, OWN = "ray-ours--ireland.yaml", "ray-ours--cellar.yaml"


def exported(provider: str = "aws", region: str = "eu-west-1", **changes: Any) -> dict[str, Any]:
    files = export(hybrid.plan(), hybrid.problem(**changes), hybrid.facts(provider, region))
    return {name: yaml.safe_load(text) for name, text in files.items()}


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    import ray.autoscaler  # slow to import

    path = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_clusters_fit_the_schema(schema: jsonschema.Draft7Validator, provider: str) -> None:
    """One for each place, whatever the provider."""
    found = exported(provider)
    for cluster in found.values():
        schema.validate(cluster)
    assert found.keys() == {CLOUD, OWN}


def test_types_of_nodes_are_ways_of_buying() -> None:
    """With the plan's least, and what it leaves room for."""
    cluster = exported()[CLOUD]
    types = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}
    assert {k: (v["min_workers"], v["max_workers"]) for k, v in types.items()} == {
        "g6-xlarge-on-demand": (0, 10), "g6-xlarge-reserved": (0, 2), "g6-xlarge-spot": (0, 8),
    }  # fmt: skip
    assert cluster["max_workers"] == 20
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


def test_names_are_no_commands() -> None:
    """What a price list calls an accelerator reaches a shell on each machine: as a word, whatever is in it."""
    evil = "A$(touch${IFS}/tmp/x);`id`\" 'b"
    machines = tuple(replace(m, accelerator=evil) for m in hybrid.problem().machines)
    cluster = exported(machines=machines)[OWN]
    start = cluster["worker_start_ray_commands"][1]
    *_, labels = shlex.split(start.replace("$RAY_HEAD_IP", "HEAD"))
    assert labels.startswith("--labels=")
    assert not set(labels) & set("$();`\"' ")


@pytest.mark.parametrize(
    ("provider", "config"),
    [
        ("gcp", {"machineType": SMALL, "scheduling": {"provisioningModel": "SPOT"}}),
        ("azure", {"azure_arm_parameters": {"vmSize": SMALL, "priority": "Spot"}}),
    ],
)
def test_providers_have_their_own_words(provider: str, config: dict[str, Any]) -> None:
    """For machines and markets."""
    cluster = exported(provider)[CLOUD]
    assert cluster["available_node_types"]["g6-xlarge-spot"]["node_config"] == config


def test_a_cloud_that_ray_cannot_rent_from_is_as_ones_own() -> None:
    """Its machines' addresses are to be filled in."""
    assert exported("lambda", "us-east-1")[CLOUD]["provider"]["type"] == "local"
