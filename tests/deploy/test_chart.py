"""What the chart makes of values, checked against Kubernetes' own schemas and against what it promises."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from stoa.config import load_settings
from tests.deploy import value_sets
from tests.deploy.renderer import Manifest, Renderer

OWN_SCHEMAS = {
    path.stem: jsonschema.Draft7Validator(json.loads(path.read_text()))
    for path in (Path(__file__).parent / "schemas").glob("*.json")
}
VERSIONS = ("1.27", kubernetes_validate.latest_version())
every_set = pytest.mark.parametrize("values", value_sets.ALL.values(), ids=value_sets.ALL.keys())


def one(objects: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = [o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    return found


def pod_templates(objects: list[Manifest]) -> dict[str, Manifest]:
    """By role: gateway, head, and each worker group's name."""
    found = {"gateway": one(objects, "Deployment")["spec"]["template"]}
    for cluster in (o["spec"] for o in objects if o["kind"] == "RayCluster"):
        found["head"] = cluster["headGroupSpec"]["template"]
        found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found


def environment(template: Manifest) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


@every_set
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_schemas(render: Renderer, values: dict[str, Any], version: str) -> None:
    """Every object, and every pod of Ray's, is one that Kubernetes accepts."""
    objects = render(**values)
    for template in pod_templates(objects).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "pod"}}
        objects.append({**pod, "spec": template["spec"]})
    for item in objects:
        if item["kind"] in OWN_SCHEMAS:
            OWN_SCHEMAS[item["kind"]].validate(item)
        else:
            kubernetes_validate.validate(item, version, strict=True)


@every_set
def test_names_and_selectors_meet(render: Renderer, values: dict[str, Any]) -> None:
    """Service, budget and policy select the gateway's pods; names are unique in each kind."""
    objects = render(**values)
    labels = pod_templates(objects)["gateway"]["metadata"]["labels"].items()
    assert one(objects, "Service")["spec"]["selector"].items() <= labels
    for kind, name in (("PodDisruptionBudget", "stoa"), ("Deployment", "stoa")):
        assert one(objects, kind, name)["spec"]["selector"]["matchLabels"].items() <= labels
    policy = one(objects, "NetworkPolicy", "stoa-gateway")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))


@every_set
def test_lint_and_notes(render: Renderer, values: dict[str, Any]) -> None:
    """Helm finds nothing wrong, and the notes tell how to get in."""
    render(**values)
    assert "port-forward svc/stoa" in render.notes
    assert ("stoa key add" in render.notes) is ("auth" not in values)
    assert render.lint()["errors"] == []


@every_set
def test_pods_are_confined(render: Renderer, values: dict[str, Any]) -> None:
    """No pod runs as root, writes into its image, keeps a capability, or takes a Service's name for a setting."""
    for template in pod_templates(render(**values)).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {m["mountPath"] for m in container["volumeMounts"]}
        assert {"/tmp", "/var/lib/stoa"} <= mounts
        assert {m["name"] for m in container["volumeMounts"]} <= {v["name"] for v in spec["volumes"]}


@every_set
def test_only_the_autoscaler_speaks_to_kubernetes(render: Renderer, values: dict[str, Any]) -> None:
    """A ServiceAccount's token is mounted in no pod but the Ray head's."""
    objects = render(**values)
    for role, template in pod_templates(objects).items():
        assert ("automountServiceAccountToken" not in template["spec"]) is (role == "head")
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False


@every_set
def test_secrets_are_referred_to(render: Renderer, values: dict[str, Any]) -> None:
    """The chart makes no Secret and writes none into a pod or stoa.toml."""
    objects = render(**values)
    assert not [o for o in objects if o["kind"] == "Secret"]
    for template in pod_templates(objects).values():
        for name, value in environment(template).items():
            if re.search(r"KEY|TOKEN|PASSWORD|STOA_DB|STOA_REDIS", name):
                assert list(value) == ["secretKeyRef"], name
    assert (
        not {"api_key", "db", "redis"} & tomllib.loads(one(objects, "ConfigMap")["data"]["stoa.toml"]).keys()
    )


@every_set
def test_settings_are_stoas(render: Renderer, values: dict[str, Any], tmp_path: Path) -> None:
    """`stoa serve` accepts the stoa.toml of every set."""
    file = tmp_path / "stoa.toml"
    file.write_text(one(render(**values), "ConfigMap")["data"]["stoa.toml"])
    settings = load_settings(file=file, environ={})
    assert settings.auth == "keys"
    assert settings.log_format == "json"


def test_settings_of_every_shape(render: Renderer) -> None:
    """Numbers, texts, lists and tables of `config` reach stoa.toml as they are."""
    remote = {"name": "up", "url": "https://example/v1", "models": {"base": 'their "base"'}, "timeout_s": 2.5}
    objects = render(config={"max_queue": 8388608, "watts": 0.5, "speculation": False, "remote": [remote]})
    told = tomllib.loads(one(objects, "ConfigMap")["data"]["stoa.toml"])
    assert told.pop("remote") == [remote]
    assert {k: told[k] for k in ("max_queue", "watts", "speculation")} == {
        "max_queue": 8388608,
        "watts": 0.5,
        "speculation": False,
    }


def test_new_settings_restart_gateways(render: Renderer) -> None:
    """Pods carry a checksum of stoa.toml."""
    key = "checksum/config"
    marks = [
        pod_templates(render(config=c))["gateway"]["metadata"]["annotations"][key] for c in ({}, {"watts": 5})
    ]
    assert marks[0] != marks[1]


@pytest.mark.parametrize(("drain_s", "pre_stop_s"), [(30, 5), (0, 0), (600, 20)])
def test_pods_may_drain(render: Renderer, drain_s: int, pre_stop_s: int) -> None:
    """A gateway is killed only some time after it has given up waiting for requests itself."""
    spec = pod_templates(render(gateway={"drainSeconds": drain_s, "preStopSeconds": pre_stop_s}))["gateway"][
        "spec"
    ]
    assert spec["terminationGracePeriodSeconds"] >= drain_s + pre_stop_s + 10
    assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(pre_stop_s)]


def test_probes(render: Renderer) -> None:
    """Liveness asks /health, readiness /ready, and a slow start is waited for."""
    container = pod_templates(render(gateway={"startupSeconds": 90}))["gateway"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 90


def test_one_gateway_is_replaced_and_many_are_rolled(render: Renderer) -> None:
    """With SQLite there are never two gateways; with PostgreSQL there is never one less."""
    assert one(render(), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    many = one(render(**value_sets.MANY_GATEWAYS), "Deployment")["spec"]
    assert many["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert many["replicas"] == 3


def test_an_autoscaler_rules_alone(render: Renderer) -> None:
    """A Deployment under an autoscaler names no number of gateways."""
    objects = render(**value_sets.EVERYTHING)
    assert "replicas" not in one(objects, "Deployment")["spec"]
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] == 6


def test_claims_are_kept_and_existing_ones_used(render: Renderer) -> None:
    """An uninstalled release leaves its volumes; a named claim is not made again."""
    claims = [o for o in render(**value_sets.EVERYTHING) if o["kind"] == "PersistentVolumeClaim"]
    assert {c["metadata"]["name"] for c in claims} == {"stoa-adapters", "stoa-models"}
    assert all(c["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for c in claims)
    theirs = render(persistence={"home": {"existingClaim": "mine"}})
    assert not [o for o in theirs if o["kind"] == "PersistentVolumeClaim"]
    volumes = pod_templates(theirs)["gateway"]["spec"]["volumes"]
    assert {"name": "home", "persistentVolumeClaim": {"claimName": "mine"}} in volumes
