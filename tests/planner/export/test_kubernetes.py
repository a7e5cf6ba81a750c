"""What is exported to Kubernetes is what Kubernetes and our own chart accept, and what the fleet reads back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
import yaml

from stoa.fleet.cluster.machines import Machine
from stoa.fleet.policies.contract import parse_plan
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.planner.export.kubernetes import export
from stoa.planner.livefacts import LiveFacts
from stoa.planner.problem import Offer, Place, Problem
from tests.deploy.renderer import Renderer
from tests.deploy.test_chart import OWN_SCHEMAS, VERSIONS, one, pod_templates
from tests.planner import hybrid
from tests.planner.hybrid import MODEL, SMALL

IRELAND_VALUES, CELLAR_VALUES = "values-ours--g6-xlarge--ireland.yaml", "values-ours--box--cellar.yaml"


def exported(problem: Problem | None = None, facts: LiveFacts | None = None) -> dict[str, list[Any]]:
    """Documents of each file."""
    at = problem or hybrid.problem()
    files = export(hybrid.plan(at), at, facts or hybrid.facts())
    return {name: list(yaml.safe_load_all(text)) for name, text in files.items()}


def test_there_are_files_for_each_place() -> None:
    """And the plan."""
    assert exported().keys() == {
        CELLAR_VALUES, IRELAND_VALUES, "deployments-cellar.yaml", "deployments-ireland.yaml", "plan.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_takes_the_values(render: Renderer, version: str) -> None:
    """Each object that it makes of them is one that Kubernetes accepts."""
    for values in (docs[0] for name, docs in exported().items() if name.startswith("values-")):
        objects = render(**values)
        for template in pod_templates(objects).values():
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "pod"}}
            objects.append({**pod, "spec": template["spec"]})
        for item in objects:
            if item["kind"] in OWN_SCHEMAS:
                OWN_SCHEMAS[item["kind"]].validate(item)
            else:
                kubernetes_validate.validate(item, version, strict=True)


def test_worker_groups_are_what_the_plan_has_room_for(render: Renderer) -> None:
    """The chart's own groups are gone; nodes come on the right machines, and say to the fleet where they are."""
    (values,) = exported()[IRELAND_VALUES]
    objects = render(**values)
    groups = {g["groupName"]: g for g in one(objects, "RayCluster")["spec"]["workerGroupSpecs"]}
    assert {name: (g["minReplicas"], g["maxReplicas"]) for name, g in groups.items()} == {
        "on-demand-planned": (0, 10),  # twice the five that are planned here
        "reserved-planned": (0, 2),
        "spot-planned": (0, 8),
    }
    assert groups.keys() == {"on-demand-planned", "reserved-planned", "spot-planned"}
    spot = groups["spot-planned"]
    spec = spot["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["nodeSelector"] == {
        "topology.kubernetes.io/region": "eu-west-1",
        "node.kubernetes.io/instance-type": SMALL,
        "eks.amazonaws.com/capacityType": "SPOT",
    }
    assert {t["key"] for t in spec["tolerations"]} == {"nvidia.com/gpu"}
    machine = Machine("id", "address", spot["labels"], {}, {})
    assert (machine.zone, machine.market) == ("ireland", "spot")
    assert spot["labels"]["ray.io/availability-zone"] == "ireland"  # what a fleet asks Ray's autoscaler for
    toml = one(objects, "ConfigMap")["data"]["stoa.toml"]
    assert "max_replicas = 20" in toml
    assert machine.has({"stoa.io/machine": "g6-xlarge"})
    assert 'replica_labels = "stoa.io/machine=g6-xlarge"' in toml


def test_the_plan_is_mounted_and_can_be_followed(render: Renderer) -> None:
    """Its zones are those that exported nodes say they are in, and its fleet is the machine's own."""
    files = exported()
    (config_map,) = files["plan.yaml"]
    kubernetes_validate.validate(config_map, VERSIONS[-1], strict=True)
    (values,) = files[IRELAND_VALUES]
    plan = parse_plan(config_map["data"]["plan.json"], "plan.json")
    mine = ModelPlan.of(plan, MODEL, machine=values["config"]["machine"])
    assert mine.place_of("ireland") == "ireland"
    pod = one(render(**values), "Deployment")["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert values["config"]["plan"] == f"{mounts['plan']}/plan.json"
    assert {"name": "plan", "configMap": {"name": "stoa-plan"}} in pod["volumes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_deployments_are_valid_and_count_the_plan(version: str) -> None:
    """As many replicas as the fullest period has; each Service finds the pods of its model."""
    found = [d for name, docs in exported().items() if name.startswith("deployments-") for d in docs]
    for item in found:
        kubernetes_validate.validate(item, version, strict=True)
    deployments = [d for d in found if d["kind"] == "Deployment"]
    assert [d["spec"]["replicas"] for d in deployments] == [2, 2, 3]
    for service in (d for d in found if d["kind"] == "Service"):
        selected = service["spec"]["selector"].items()
        assert all(selected <= d["spec"]["template"]["metadata"]["labels"].items() for d in deployments)


@pytest.mark.parametrize(
    ("provider", "region", "accelerator", "selector", "taints"),
    [
        ("gcp", "us-central1", "L4",
         {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true"},
         {"nvidia.com/gpu", "cloud.google.com/gke-spot"}),
        ("azure", "westeurope", "A100-80GB", {"kubernetes.azure.com/scalesetpriority": "spot"},
         {"nvidia.com/gpu", "kubernetes.azure.com/scalesetpriority"}),
        ("aws", "eu-west-1", "MI300X", {"eks.amazonaws.com/capacityType": "SPOT"}, {"amd.com/gpu"}),
        ("lambda", "us-east-1", "H100", {"stoa.io/machine": "g6-xlarge"}, {"nvidia.com/gpu"}),
    ],
)  # fmt: skip
def test_clouds_have_their_own_words(
    provider: str, region: str, accelerator: str, selector: dict[str, str], taints: set[str]
) -> None:
    """For spot machines, regions and accelerators."""
    at = hybrid.problem()
    machines = tuple(replace(m, accelerator=accelerator) if m.name == SMALL else m for m in at.machines)
    (values,) = exported(replace(at, machines=machines), hybrid.facts(provider, region))[IRELAND_VALUES]
    group = values["ray"]["workerGroups"]["spot-planned"]
    assert selector.items() <= group["nodeSelector"].items()
    assert {t["key"] for t in group["tolerations"]} == taints
    assert group["nodeSelector"]["topology.kubernetes.io/region"] == region


def test_names_become_labels() -> None:
    """Whatever places are called, no two of them share a name afterwards."""
    at = hybrid.problem()
    names = {hybrid.CELLAR: "Keller (Süd)", hybrid.IRELAND: "Keller, Süd"}
    renamed = replace(
        at,
        places=tuple(Place(names.get(p.name, p.name), p.labels) for p in at.places),
        offers=tuple(replace(o, place=names[o.place]) for o in at.offers),
        groups=tuple(replace(g, places=frozenset(names.get(p, p) for p in g.places)) for g in at.groups),
    )
    plan = hybrid.plan(at)
    moved = replace(
        plan,
        rented=tuple(replace(r, pool=replace(r.pool, place=names[r.pool.place])) for r in plan.rented),
        routes=(),
    )
    files = export(moved, renamed, hybrid.facts())
    assert len(files) == 5
    zones = {
        yaml.safe_load(text)["ray"]["workerGroups"][group]["labels"]["stoa.io/zone"]
        for name, text in files.items()
        if name.startswith("values-")
        for group in yaml.safe_load(text)["ray"]["workerGroups"]
        if group.endswith("-planned")
    }
    assert zones == {"stoa-keller-s-d", "stoa-keller-s-d-2"}


def test_offers_without_limit_have_one_here() -> None:
    """Twice what is planned at the place, so that a fault cannot rent a cloud."""
    at = hybrid.problem()
    limited = replace(
        at, offers=(*at.offers[:1], Offer(hybrid.IRELAND, SMALL, "on_demand", 0.8, 3), *at.offers[2:])
    )
    (values,) = exported(limited)[IRELAND_VALUES]
    assert values["ray"]["workerGroups"]["on-demand-planned"]["maxReplicas"] == 3
