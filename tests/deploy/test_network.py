"""NetworkPolicies: who may speak to whom."""

from typing import Any

from tests.deploy import value_sets
from tests.deploy.renderer import Manifest, Renderer
from tests.deploy.test_chart import one

DNS = ("any namespace", (53,))
NODES = {"ray.io/cluster": "stoa-ray"}


def rules(policy: Manifest, way: str, peers: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """(who, ports) of each rule; None: anybody; no ports: all."""
    found = []
    for rule in policy["spec"].get(way, []):
        ports = [(p["port"], p["endPort"]) if "endPort" in p else p["port"] for p in rule.get("ports", [])]
        found.append((who(rule[peers][0]) if peers in rule else None, tuple(dict.fromkeys(ports))))
    return found


def who(peer: Manifest) -> Any:
    if "ipBlock" in peer:
        return peer["ipBlock"]["cidr"]
    if "podSelector" in peer:
        return peer["podSelector"]["matchLabels"]
    return "any namespace"


def test_gateways_reach_their_own_alone(render: Renderer) -> None:
    """Database, redis, the Ray head, replicas on Ray workers, names: nothing else."""
    policy = one(render(**value_sets.FLEET), "NetworkPolicy", "stoa-gateway")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert rules(policy, "egress", "to") == [
        DNS,
        ({"app": "state"}, (5432,)),
        ({"app": "state"}, (6379,)),
        (NODES | {"ray.io/node-type": "head"}, (10001,)),
        (NODES | {"ray.io/node-type": "worker"}, ((32768, 60999),)),
    ]
    assert rules(policy, "ingress", "from") == [(None, ("http",))]


def test_a_gateway_alone_reaches_nothing(render: Renderer) -> None:
    """Without Ray, database and redis only names can be looked up."""
    assert rules(one(render(), "NetworkPolicy"), "egress", "to") == [DNS]


def test_ray_nodes_are_among_themselves(render: Renderer) -> None:
    """Nodes speak to nodes; gateways reach the head's client port and replicas; the head alone the Kubernetes API."""
    objects = render(**value_sets.FLEET)
    gateway = one(objects, "NetworkPolicy", "stoa-gateway")["spec"]["podSelector"]["matchLabels"]
    head = one(objects, "NetworkPolicy", "stoa-ray-head")
    assert rules(head, "ingress", "from") == [
        (NODES, ()),
        (gateway, (10001,)),
        ({"app.kubernetes.io/name": "kuberay-operator"}, (8265, 52365)),
    ]
    assert rules(head, "egress", "to") == [DNS, (NODES, ()), (None, (443, 6443))]
    worker = one(objects, "NetworkPolicy", "stoa-ray-worker")
    assert rules(worker, "ingress", "from") == [(NODES, ()), (gateway, ((32768, 60999),))]
    assert rules(worker, "egress", "to") == [DNS, (NODES, ())]


def test_more_is_opened_by_name(render: Renderer) -> None:
    """Hub, metadata service and remotes are reached only where values say so."""
    objects = render(**value_sets.EVERYTHING)
    gateway = rules(one(objects, "NetworkPolicy", "stoa-gateway"), "egress", "to")
    assert gateway[-2:] == [(None, (443,)), ("192.0.2.0/24", (443,))]
    worker = rules(one(objects, "NetworkPolicy", "stoa-ray-worker"), "egress", "to")
    assert worker[-2:] == [(None, (443,)), ("169.254.169.254/32", (80,))]
    head = rules(one(objects, "NetworkPolicy", "stoa-ray-head"), "egress", "to")
    assert head[-2:] == [("10.0.0.1/32", (443, 6443)), ({"app": "state"}, (6379,))]
    assert not [o for o in render(networkPolicy={"enabled": False}) if o["kind"] == "NetworkPolicy"]
