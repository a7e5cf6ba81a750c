"""The nodes of a Ray cluster as machines: where, in which market, how much is free, which are about to end.

All calls into Ray's less public parts are here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from stoa.fleet.policies.facts import Market

ZONE_LABELS = (
    "stoa.io/zone",
    "ray.io/availability-zone",  # set by KubeRay; by RAY_NODE_ZONE elsewhere
    "topology.kubernetes.io/zone",
    "ray.io/availability-region",  # of a node that tells no zone
    "topology.kubernetes.io/region",
)
MARKET_LABELS = (
    "stoa.io/market",
    "ray.io/market-type",  # RAY_NODE_MARKET_TYPE
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
)
_SPOT = frozenset({"spot", "true", "preemptible"})
_NO_DEADLINE_S = 30.0  # a drain that names no time


@dataclass(frozen=True, slots=True)
class Machine:
    id: str
    address: str
    labels: Mapping[str, str]
    total: Mapping[str, float]
    free: Mapping[str, float]
    ends_in_s: float | None = None

    @property
    def zone(self) -> str:
        """A machine of which nothing is known shares one zone with all such."""
        return zone_of(self.labels)

    @property
    def market(self) -> Market:
        told = next((self.labels[key] for key in MARKET_LABELS if key in self.labels), "")
        return "spot" if told.lower() in _SPOT else "on_demand"

    def has(self, labels: Mapping[str, str]) -> bool:
        return all(self.labels.get(key) == value for key, value in labels.items())


def zone_of(labels: Mapping[str, str]) -> str:
    return next((labels[key] for key in ZONE_LABELS if key in labels), "default")


def read_machines() -> list[Machine]:
    """Those that live. Waits for the head."""
    import ray  # only cluster processes have it
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    ends = _ends_in_s()
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            node.get("Labels", {}),
            node["Resources"],
            free.get(node["NodeID"], {}),
            ends.get(node["NodeID"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _ends_in_s() -> dict[str, float]:
    """By node: what drains told Ray (its autoscaler, `ray drain-node`, SIGTERM of `ray start --block`)."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    now_s = time.time()  # deadlines are Unix times of the head's clock
    return {
        node: max(0.0, deadline_ms / 1000 - now_s) if 0 < deadline_ms < math.inf else _NO_DEADLINE_S
        for node, deadline_ms in client.get_draining_nodes(timeout=5).items()
    }
