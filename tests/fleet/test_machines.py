"""Nodes of a cluster as machines, and the ways to name a cluster; without one."""

from __future__ import annotations

import pytest

from stoa.errors import ConfigError
from stoa.fleet.cluster.bridge import head_of
from stoa.fleet.cluster.machines import Machine
from stoa.fleet.cluster.plan import fits, make_policy
from stoa.fleet.reports import ClusterUnreachable, Trouble


@pytest.mark.parametrize(
    ("labels", "zone", "market"),
    [
        ({}, "default", "on_demand"),
        ({"stoa.io/zone": "a", "stoa.io/market": "spot"}, "a", "spot"),
        ({"ray.io/availability-zone": "us-1a", "ray.io/market-type": "spot"}, "us-1a", "spot"),
        ({"ray.io/market-type": "on-demand"}, "default", "on_demand"),
        ({"topology.kubernetes.io/zone": "z", "cloud.google.com/gke-spot": "true"}, "z", "spot"),
        ({"eks.amazonaws.com/capacityType": "SPOT"}, "default", "spot"),
        ({"karpenter.sh/capacity-type": "on-demand"}, "default", "on_demand"),
        ({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "r-a"}, "r-a", "on_demand"),
        ({"ray.io/availability-region": "r"}, "r", "on_demand"),
    ],
)
def test_labels_say_zone_and_market(labels: dict[str, str], zone: str, market: str) -> None:
    """Ours win over Ray's, Ray's over the clouds'; nothing said is on demand."""
    machine = Machine("id", "10.0.0.1", labels, {}, {})
    assert (machine.zone, machine.market) == (zone, market)


def test_replicas_fit_as_often_as_the_scarcest_resource_allows() -> None:
    """Fractions of a GPU count; what a machine lacks fits no time."""
    there = {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}
    assert fits({"CPU": 4.0}, there) == 4
    assert fits({"CPU": 1.0, "GPU": 0.1}, there) == 16
    assert fits({"GPU": 0.1}, {"GPU": 0.3}) == 3
    assert fits({"CPU": 1.0, "accelerator": 1.0}, there) == 0


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("ray://head.example:10002", ("head.example", 10002)),
        ("ray://10.0.0.7", ("10.0.0.7", 10001)),
        ("10.0.0.7:6380", ("10.0.0.7", 6380)),
        ("ray://[fd00::1]:10001", ("fd00::1", 10001)),
    ],
)
def test_clusters_are_named_as_ray_names_them(address: str, head: tuple[str, int]) -> None:
    """With Ray's own ports where none is given."""
    assert head_of(address) == head


@pytest.mark.parametrize("address", ["", "ray://", "ray://host:port", "10.0.0.7:99999"])
def test_what_names_no_cluster_is_refused(address: str) -> None:
    """The message says what is accepted."""
    with pytest.raises(ClusterUnreachable, match="accepted: local, auto, ray://"):
        head_of(address)


def test_policies_are_named_by_module_and_class() -> None:
    """One that is not there is a ConfigError."""
    assert make_policy("tests.cluster.policies:Steady").initial() is None
    with pytest.raises(ConfigError, match=r"no autoscaler 'stoa\.nothing:X'"):
        make_policy("stoa.nothing:X")


def test_errors_travel_between_processes() -> None:
    """By class where it is known and needs no more than a message, else as EngineUnavailable."""
    assert Trouble("InvalidModel", "no").lasting
    assert not Trouble("EngineUnavailable", "no").lasting
    for kind in ("QueueFull", "NoSuchError", "Mapping"):
        error = Trouble(kind, "busy").error()
        assert (type(error).__name__, error.message) == ("EngineUnavailable", "busy")
