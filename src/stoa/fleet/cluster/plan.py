"""What a fleet on a cluster is to be: written by the first gateway, kept by the controller's actor."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import msgspec

from stoa.engine.config import EngineConfig
from stoa.errors import ConfigError
from stoa.fleet.policies.facts import Autoscaler, Market
from stoa.fleet.policies.profile import Profile
from stoa.fleet.worker import DEFAULT_FACTORY

NAMESPACE = "stoa"
DEFAULT_POLICY = "stoa.fleet.policies.autoscaler:Elastic"
_GIB = 1 << 30


class OfferPlan(msgspec.Struct, frozen=True):
    """A price, and where nodes come only when they are asked for, that they can be."""

    zone: str
    market: Market
    hourly: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # of the fleet; gateways of one name share it
    engine: EngineConfig
    profile: Profile
    factory: str = DEFAULT_FACTORY
    policy: str = DEFAULT_POLICY
    cpus: float = 1.0  # that a replica is given
    gpus: float = 0.0
    memory_bytes: int = 0
    resources: dict[str, float] = {}  # custom ones
    labels: dict[str, str] = {}  # that its node must have, e.g. ray.io/accelerator-type
    offers: list[OfferPlan] = []
    spot_hourly: float = 0.35  # of nodes that no offer prices
    on_demand_hourly: float = 1.0
    provision_s: float = 0.0  # how long a node may take to come; 0: the cluster does not grow
    notice_s: float = 30.0  # left after SIGTERM
    ttft_s: float = 2.0
    attainment: float = 0.99
    min_replicas: int = 0
    max_replicas: int = 1
    idle_s: float = 300.0
    tick_s: float = 1.0
    orphan_s: float = 600.0
    metadata: dict[str, str] = {}  # where clouds' metadata services are, by cloud; {}: where clouds have them

    @property
    def controller_name(self) -> str:
        return f"controller/{self.name}"

    @property
    def replica_prefix(self) -> str:
        return f"replica/{self.name}/"

    def need(self) -> dict[str, float]:
        """Resources of one replica, as Ray names them."""
        need = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes), **self.resources}
        return {name: amount for name, amount in need.items() if amount}

    def need_in_words(self) -> str:
        """What a node must have: "16 CPU, 8 GiB memory, label tier=a"."""
        need = [
            f"{amount / _GIB:g} GiB memory" if name == "memory" else f"{amount:g} {name}"
            for name, amount in self.need().items()
        ]
        return ", ".join([*need, *(f"label {name}={value}" for name, value in self.labels.items())])


def make_policy(name: str) -> Autoscaler[Any]:
    """`name`: module:class, of one that wants no arguments."""
    module, _, kind = name.partition(":")
    try:
        policy: Autoscaler[Any] = getattr(import_module(module), kind)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"no autoscaler {name!r}: {error}", param="policy") from None
    return policy


def fits(need: Mapping[str, float], there: Mapping[str, float]) -> int:
    """How many times."""
    return min((int(there.get(name, 0.0) / amount + 1e-9) for name, amount in need.items()), default=1 << 30)
