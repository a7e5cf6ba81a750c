"""Ray's cluster launcher (`ray up`): a cluster for each model and place, a type of node for each way of buying machines.

`min_workers` are the plan's least, `max_workers` what it leaves room for. Ray's autoscaler brings nodes as the fleet asks,
and the fleet asks as its plan says. Labels are those that the fleet reads zone and market from. Machines of one's own are a
cluster of the provider "local": their addresses are to be filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import Any

from stoa.planner.apply import fleet_plan
from stoa.planner.export.needs import Need, as_yaml, needs, with_room
from stoa.planner.livefacts import LiveFacts, Site
from stoa.planner.names import Names, joined, label_value
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem

HEAD = "head"
_HEADS = {"aws": "m6i.large", "gcp": "e2-standard-2", "azure": "Standard_D2s_v5"}  # of 2 CPUs and 8 GiB
_USERS = {"aws": "ubuntu", "gcp": "ubuntu", "azure": "ubuntu"}


def export(plan: Plan, problem: Problem, facts: LiveFacts) -> dict[str, str]:
    """Raises ConfigError."""
    found = with_room(needs(plan, problem, facts), fleet_plan(plan, problem, facts), problem)
    names = Names.of(problem)
    files = {}
    for model, place in dict.fromkeys((n.pool.model, n.pool.place) for n in found):
        here = [n for n in found if (n.pool.model, n.pool.place) == (model, place)]
        slug = joined(names.model[model], names.place[place])
        most = sum(n.most for n in here)
        files[f"ray-{slug}.yaml"] = as_yaml(
            f"At {place}: ray up ray-{slug}.yaml; then\n"
            f"stoa serve --cluster ray://HEAD:10001 --model {quote(facts.source(model))} --served-model-name {quote(model)}",
            _cluster(f"stoa-{slug}", here, names, most),
        )
    return files


def _cluster(name: str, some: Sequence[Need], names: Names, most: int) -> dict[str, Any]:
    site = some[0].site
    common: dict[str, Any] = {"cluster_name": name, "max_workers": most, "idle_timeout_minutes": 5}
    setup = ["pip install 'stoa[cluster]'"]
    if site.provider not in _HEADS:
        hosts = [f"HOST-{i + 1}" for i in range(most)]  # whoever owns them knows their addresses
        return {
            **common,
            "provider": {"type": "local", "head_ip": "HEAD", "worker_ips": hosts},
            "auth": {"ssh_user": "USER"},
            "setup_commands": setup,
            "worker_start_ray_commands": ["ray stop", _start(_labels(some[0], names), some[0])],
        }
    types = {f"{names.machine[n.pool.machine]}-{n.purchase.replace('_', '-')}": _type(n, names) for n in some}
    head = {
        "resources": {"CPU": 0},
        "node_config": _node(site.provider, _HEADS[site.provider]),
        "max_workers": 0,
    }
    return {
        **common,
        "provider": _provider(site),
        "auth": {"ssh_user": _USERS[site.provider]},
        "available_node_types": {HEAD: head, **types},
        "head_node_type": HEAD,
        "setup_commands": setup,
    }


def _start(labels: dict[str, str], need: Need) -> str:
    """On a machine whose type Ray does not know, the machine says itself what it is."""
    text = ",".join(f"{key}={value}" for key, value in labels.items())
    return (
        f"ray start --address=$RAY_HEAD_IP:6379 --num-gpus={need.machine.accelerators} --labels={quote(text)}"
    )


def _provider(site: Site) -> dict[str, Any]:
    if site.provider == "azure":
        return {"type": "azure", "location": site.region or "REGION", "resource_group": "stoa"}
    zone = {"availability_zone": site.zone} if site.zone else {}
    found = {"type": site.provider, "region": site.region or "REGION", **zone}
    return found | {"project_id": "PROJECT"} if site.provider == "gcp" else found


def _type(need: Need, names: Names) -> dict[str, Any]:
    return {
        "min_workers": need.least,
        "max_workers": need.most,
        "resources": {"GPU": need.machine.accelerators},
        "labels": _labels(need, names),
        "node_config": _node(need.site.provider, need.pool.machine, spot=need.market == "spot"),
    }


def _labels(need: Need, names: Names) -> dict[str, str]:
    zone = names.place[need.pool.place]
    found = {
        "stoa.io/zone": zone,
        "stoa.io/machine": names.machine[need.pool.machine],
        "ray.io/availability-zone": zone,
        "ray.io/market-type": need.market,
        "ray.io/accelerator-type": label_value(need.machine.accelerator),
    }
    return found | ({"ray.io/availability-region": label_value(need.site.region)} if need.site.region else {})


def _node(provider: str, machine: str, *, spot: bool = False) -> dict[str, Any]:
    """In the provider's own words."""
    if provider == "azure":
        extra = {"priority": "Spot"} if spot else {}
        return {"azure_arm_parameters": {"vmSize": machine, **extra}}
    if provider == "gcp":
        gcp: dict[str, Any] = {"machineType": machine}
        return gcp | ({"scheduling": {"provisioningModel": "SPOT"}} if spot else {})
    aws: dict[str, Any] = {"InstanceType": machine}
    return aws | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})
