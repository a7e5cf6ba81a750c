"""The Ray cluster of the chart: where nodes come from, and who they are to the fleet's policies."""

from importlib.metadata import version
from typing import Any

from stoa.fleet.cluster.machines import Machine
from tests.deploy import value_sets
from tests.deploy.renderer import Manifest, Renderer
from tests.deploy.test_chart import environment, one, pod_templates


def groups(objects: list[Manifest]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in one(objects, "RayCluster")["spec"]["workerGroupSpecs"]}


def test_a_group_for_each_zone(render: Renderer) -> None:
    """A group with zones becomes one for each, on that zone's machines; one without stays one."""
    found = groups(render(**value_sets.FLEET))
    assert set(found) == {"on-demand", "spot-eu-1a", "spot-eu-1b"}
    selector = found["spot-eu-1a"]["template"]["spec"]["nodeSelector"]
    assert selector == {"example.com/spot": "true", "topology.kubernetes.io/zone": "eu-1a"}
    assert found["spot-eu-1a"]["template"]["spec"]["tolerations"][0]["key"] == "example.com/spot"
    assert "nodeSelector" not in found["on-demand"]["template"]["spec"]


def test_nodes_say_zone_and_market(render: Renderer) -> None:
    """What Ray and the pod say of a node is what the fleet reads: zone and market."""
    for name, (zone, market) in {
        "spot-eu-1b": ("eu-1b", "spot"),
        "on-demand": ("default", "on_demand"),
    }.items():
        group = groups(render(**value_sets.FLEET))[name]
        machine = Machine("id", "address", group["labels"], {}, {})
        assert (machine.zone, machine.market) == (zone, market)
        assert group["labels"].items() <= group["template"]["metadata"]["labels"].items()


def test_groups_override_what_all_have(render: Renderer) -> None:
    """A group's own words win over ray.worker, and a group that is null is none."""
    found = groups(render(**value_sets.EVERYTHING))
    assert set(found) == {"spot-eu-1a"}
    spec = found["spot-eu-1a"]["template"]["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["terminationGracePeriodSeconds"] == 25
    resources = spec["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "8Gi"}
    assert resources["limits"]["nvidia.com/gpu"] == 1


def test_ray_scales_and_asks_for_its_token(render: Renderer) -> None:
    """Ray's autoscaler is on, no engine runs on the head, and a token is wanted from nodes and gateways."""
    objects = render(**value_sets.FLEET)
    spec = one(objects, "RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token", "secretName": "stoa-ray"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    told = environment(pod_templates(objects)["gateway"])
    assert told["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "stoa-ray", "key": "auth_token"}}


def test_gateways_find_the_head(render: Renderer) -> None:
    """Gateways are told the Service that KubeRay makes for the head, or the external one."""
    for values, address in (
        (value_sets.FLEET, "ray://stoa-ray-head-svc:10001"),
        (value_sets.EXTERNAL_RAY, "ray://ray.example:10001"),
    ):
        text = one(render(**values), "ConfigMap")["data"]["stoa.toml"]
        assert f'cluster = "{address}"' in text
    assert "cluster" not in one(render(), "ConfigMap")["data"]["stoa.toml"]


def test_adapters_lie_at_one_path(render: Renderer) -> None:
    """Gateways and nodes see adapters and models at the same paths; nodes cannot write there."""
    templates = pod_templates(render(**value_sets.EVERYTHING))
    for name, path in (("adapters", "/var/lib/stoa/adapters"), ("models", "/models")):
        for role, template in templates.items():
            mounts = {m["name"]: m for m in template["spec"]["containers"][0]["volumeMounts"]}
            assert mounts[name]["mountPath"] == path
            assert mounts[name]["readOnly"] is (role != "gateway")


def test_one_image(render: Renderer) -> None:
    """Gateways and nodes run the same image, by digest where one is given."""
    templates = pod_templates(render(**value_sets.EVERYTHING))
    images = {t["spec"]["containers"][0]["image"] for t in templates.values()}
    assert images == {"registry.example/stoa@sha256:" + "0a" * 32}


def test_one_version_of_ray(render: Renderer) -> None:
    """KubeRay is told the version that the tests run with."""
    assert one(render(**value_sets.FLEET), "RayCluster")["spec"]["rayVersion"] == version("ray")
