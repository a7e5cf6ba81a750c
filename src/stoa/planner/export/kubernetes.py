"""Kubernetes: values for Stoa's chart, the plan itself as a ConfigMap, and plain Deployments without chart and Ray.

One cluster stands at one place, so there are files for each place. With the chart a fleet follows its plan by itself: worker
groups say how few and how many nodes there may be, the plan says when, and nothing has to change them by the clock.

| | accelerators | spot |
|---|---|---|
| EKS, AKS | by type of instance | the provider's label; on AKS its taint |
| GKE | by type of accelerator and of machine | label and taint |
| own nodes | the label stoa.io/machine, to be given to them | |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stoa.planner.apply import fleet_plan
from stoa.planner.export.needs import PORT, Need, as_yaml, gpu_resource, needs, total, with_room
from stoa.planner.livefacts import LiveFacts
from stoa.planner.names import Names, joined, label_value
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem

PLAN_MAP, PLAN_FOLDER = "stoa-plan", "/etc/stoa-plan"
KEY_SECRET, RAY_SECRET = "stoa-key", "stoa-ray"
IMAGE = "stoa"  # as the Dockerfile makes it; `kustomize edit set image` or the like names the registry
_GKE = {
    "T4": "nvidia-tesla-t4", "L4": "nvidia-l4", "V100": "nvidia-tesla-v100", "A100-40GB": "nvidia-tesla-a100",
    "A100-80GB": "nvidia-a100-80gb", "H100": "nvidia-h100-80gb", "H200": "nvidia-h200-141gb", "B200": "nvidia-b200",
}  # fmt: skip
_SPOT_TAINTS = {"gcp": "cloud.google.com/gke-spot", "azure": "kubernetes.azure.com/scalesetpriority"}


def export(plan: Plan, problem: Problem, facts: LiveFacts) -> dict[str, str]:
    """The plan, values for the chart, and Deployments for each place. ConfigError."""
    found = needs(plan, problem, facts)
    followed = fleet_plan(plan, problem, facts)
    grouped = with_room(found, followed, problem)
    names = Names.of(problem)
    text = msgspec.json.format(msgspec.json.encode(followed), indent=1).decode()
    files = {
        "plan.yaml": as_yaml(
            "What the fleets follow. Changed, it is followed within a minute or two; nothing has to be restarted.",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": PLAN_MAP},
                "data": {"plan.json": text},
            },
        )
    }
    for pool in dict.fromkeys(n.pool for n in grouped):
        slug = joined(names.model[pool.model], names.machine[pool.machine], names.place[pool.place])
        least = total([n for n in found if n.pool == pool], plan)[0]
        groups = [n for n in grouped if n.pool == pool]
        files[f"values-{slug}.yaml"] = as_yaml(
            f"helm install {slug[:40].strip('-')} deploy/helm/stoa --values values-{slug}.yaml, at {pool.place}.\n"
            f"Wants the Secret {RAY_SECRET} (auth_token), KubeRay, and the ConfigMap of plan.yaml.",
            _values(groups, names, facts, least),
        )
    for place in dict.fromkeys(n.pool.place for n in found):
        files[f"deployments-{names.place[place]}.yaml"] = as_yaml(
            f"Without chart and Ray, at {place}: as many as the fullest period wants.\n"
            f"Wants the Secret {KEY_SECRET} (api-key). A gateway names each Service as a [[remote]] of dialect stoa.",
            *_manifests([n for n in found if n.pool.place == place], names, facts),
        )
    return files


# -- the chart


def _values(some: Sequence[Need], names: Names, facts: LiveFacts, least: int) -> dict[str, Any]:
    first, most = some[0], sum(n.most for n in some)
    return {
        "model": {"name": facts.source(first.pool.model), "servedName": first.pool.model},
        "config": {
            "machine": first.pool.machine,
            "replica_gpus": first.machine.accelerators,
            "replica_labels": f"stoa.io/machine={names.machine[first.pool.machine]}",
            "provision_s": 600,
            "plan": f"{PLAN_FOLDER}/plan.json",
        },
        "gateway": {
            "extraVolumes": [{"name": "plan", "configMap": {"name": PLAN_MAP}}],
            "extraVolumeMounts": [{"name": "plan", "mountPath": PLAN_FOLDER, "readOnly": True}],
        },
        "fleet": {"minReplicas": least, "maxReplicas": max(1, most)},
        "ray": {
            "enabled": True,
            "auth": {"existingSecret": RAY_SECRET},
            # The chart's own groups are none of the plan's.
            "workerGroups": {"on-demand": None, "spot": None}
            | {_group_name(n): _group(n, names) for n in some},
        },
        "persistence": {"adapters": {"storage": "claim"}},
    }


def _group_name(need: Need) -> str:
    return need.purchase.replace("_", "-") + "-planned"


def _group(need: Need, names: Names) -> dict[str, Any]:
    gpus = {gpu_resource(need.machine): need.machine.accelerators}
    return {
        "market": need.market,
        "minReplicas": need.least,
        "maxReplicas": need.most,
        "resources": {"limits": gpus},
        "nodeSelector": _selector(need, names),
        "tolerations": _tolerations(need),
        "labels": _labels(need, names),
    }


def _labels(need: Need, names: Names) -> dict[str, str]:
    """What nodes say of themselves, to Kubernetes and to the fleet."""
    labels = {
        "stoa.io/zone": names.place[need.pool.place],
        "stoa.io/machine": names.machine[need.pool.machine],
    }
    return labels | {"ray.io/accelerator-type": label_value(need.machine.accelerator)}


# -- where pods may run


def _selector(need: Need, names: Names) -> dict[str, str]:
    site, spot = need.site, need.market == "spot"
    found: dict[str, str] = {}
    if site.zone:
        found["topology.kubernetes.io/zone"] = site.zone
    elif site.region:
        found["topology.kubernetes.io/region"] = site.region
    if site.provider in ("aws", "azure", "gcp"):
        found["node.kubernetes.io/instance-type"] = need.pool.machine
    else:
        found["stoa.io/machine"] = names.machine[need.pool.machine]
    if site.provider == "aws":
        found["eks.amazonaws.com/capacityType"] = "SPOT" if spot else "ON_DEMAND"
    if site.provider == "gcp" and need.machine.accelerator in _GKE:
        found["cloud.google.com/gke-accelerator"] = _GKE[need.machine.accelerator]
    if spot and site.provider in _SPOT_TAINTS:
        found[_SPOT_TAINTS[site.provider]] = _spot_value(site.provider)
    return found


def _tolerations(need: Need) -> list[dict[str, str]]:
    found = [{"key": gpu_resource(need.machine), "operator": "Exists", "effect": "NoSchedule"}]
    if need.market == "spot" and (taint := _SPOT_TAINTS.get(need.site.provider)) is not None:
        value = _spot_value(need.site.provider)
        found.append({"key": taint, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    return found


def _spot_value(provider: str) -> str:
    return "spot" if provider == "azure" else "true"


# -- without the chart


def _manifests(some: Sequence[Need], names: Names, facts: LiveFacts) -> list[dict[str, Any]]:
    """A Deployment for each need, and a Service for each model."""
    services = []
    for model in dict.fromkeys(n.pool.model for n in some):
        name = f"stoa-{names.model[model]}"
        port = {"name": "http", "port": 80, "targetPort": "http"}
        services.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "labels": _app(names.model[model])},
                "spec": {"selector": _app(names.model[model]), "ports": [port]},
            }
        )
    return [*(_deployment(n, names, facts) for n in some), *services]


def _app(model: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "stoa", "app.kubernetes.io/instance": model}


def _deployment(need: Need, names: Names, facts: LiveFacts) -> dict[str, Any]:
    model, machine = names.model[need.pool.model], names.machine[need.pool.machine]
    kind = {"stoa.io/machine": machine, "stoa.io/purchase": need.purchase.replace("_", "-")}
    labels = {**_app(model), **kind}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": joined(f"stoa-{model}", machine, kind["stoa.io/purchase"]), "labels": labels},
        "spec": {
            "replicas": need.most,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(need, names, facts)},
        },
    }


def _pod(need: Need, names: Names, facts: LiveFacts) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called stoa would set STOA_PORT to a URL
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 25 if need.market == "spot" else 60,
        "nodeSelector": _selector(need, names),
        "tolerations": _tolerations(need),
        "containers": [_container(need, facts)],
        "volumes": [{"name": name, "emptyDir": {}} for name in ("home", "tmp")],
    }  # fmt: skip


def _container(need: Need, facts: LiveFacts) -> dict[str, Any]:
    gpus = {gpu_resource(need.machine): need.machine.accelerators}
    key: Mapping[str, Any] = {"secretKeyRef": {"name": KEY_SECRET, "key": "api-key"}}
    return {
        "name": "stoa",
        "image": IMAGE,
        "args": ["serve", "--model", facts.source(need.pool.model), "--served-model-name", need.pool.model],
        "env": [
            {"name": "STOA_HOST", "value": "0.0.0.0"},
            {"name": "STOA_PORT", "value": str(PORT)},
            {"name": "STOA_API_KEY", "valueFrom": key},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5, "failureThreshold": 240},
        "livenessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 2},
        "resources": {"limits": gpus},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "home", "mountPath": "/var/lib/stoa"}, {"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
