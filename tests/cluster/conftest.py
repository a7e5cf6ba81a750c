"""One Ray cluster of several logical nodes on this machine, for all tests here."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoa.engine.config import EngineConfig
from stoa.engine.request import GenerationRequest
from stoa.fleet.cluster.controls import RayControls
from stoa.fleet.cluster.plan import NAMESPACE, Plan
from stoa.fleet.fleet import Fleet
from stoa.fleet.membership import Membership
from stoa.fleet.policies.profile import Profile
from stoa.fleet.reports import FleetState, ReplicaPlace

ray = pytest.importorskip("ray")

PROFILE = Profile(name="p", fixed_s=0.01, prompt_row_s=1e-4, decode_row_s=1e-4)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            for warning in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):  # Ray's own
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))


class Nodes:
    """Zones a and b are spot, c is on demand; each has one machine, with room for two replicas."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.client_port = 20001 + secrets.randbelow(9000)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": False, "ray_client_server_port": self.client_port
            },
        )  # fmt: skip
        self._nodes: dict[str, Any] = {}
        self.address: str = self._cluster.address
        self.mend()
        ray.init(self.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")

    def mend(self) -> None:
        """All three zones have a machine again."""
        for zone, market in (("a", "spot"), ("b", "spot"), ("c", "on-demand")):
            if zone not in self._nodes:
                labels = {"stoa.io/zone": zone, "stoa.io/market": market}
                self._nodes[zone] = self._cluster.add_node(num_cpus=2, labels=labels)

    def kill(self, zone: str) -> None:
        """Without notice, with all that runs there."""
        self._cluster.remove_node(self._nodes.pop(zone), allow_graceful=False)

    def drain(self, zone: str, seconds: float) -> None:
        """As Ray's autoscaler or a node's own SIGTERM does."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        accepted, why = GcsClient(address=self.address).drain_node(
            self._nodes[zone].node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "spot",
            int((time.time() + seconds) * 1000),
        )
        assert accepted, why

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("RAY_AUTH_MODE", "token")
        environ.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        environ.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")  # Ray has read its environment when it was imported
        AuthenticationTokenLoader.instance().reset_cache()
        nodes = Nodes()
        yield nodes
        nodes.close()


@pytest.fixture
def nodes(whole_cluster: Nodes) -> Iterator[Nodes]:
    """The cluster, whole; actors that tests leave behind are ended."""
    whole_cluster.mend()
    yield whole_cluster
    for named in ray.util.list_named_actors(all_namespaces=True):
        ray.kill(ray.get_actor(named["name"], namespace=named["namespace"]))


def make_plan(**facts: Any) -> Plan:
    told: dict[str, Any] = {
        "name": secrets.token_hex(4),
        "engine": EngineConfig(model="fake"),
        "profile": PROFILE,
        "factory": "tests.fleet.fake_engine:FakeEngine",
        "policy": "tests.cluster.policies:Steady",
        "max_replicas": 8,
        "tick_s": 0.25,
    }
    return Plan(**told | facts)


class Gateway:
    """A fleet that follows a controller on the cluster."""

    def __init__(self, address: str, plan: Plan, name: str) -> None:
        self.fleet = Fleet(hold_s=60.0)
        self.fleet.holds = True
        self.controls = RayControls(address, plan, retry_s=0.5)
        self.membership = Membership(self.fleet, self.controls, gateway=name, slots=64, period_s=0.2)
        self.state: FleetState | None = None

    async def start(self) -> None:
        await self.controls.connect()
        carry_out = self.membership.carry_out

        async def keep(state: FleetState) -> None:
            self.state = state
            await carry_out(state)

        self.membership.carry_out = keep  # type: ignore[method-assign]
        self.membership.start()

    async def stop(self) -> None:
        await self.membership.hold_still()
        await self.fleet.stop(0)
        await self.membership.close()

    @property
    def ready(self) -> list[str]:
        return sorted(i for i, m in self.fleet.members.items() if m.replica.ready and not m.draining)

    @property
    def places(self) -> dict[str, ReplicaPlace]:
        return {place.id: place for place in self.state.replicas} if self.state else {}

    def zone(self, replica_id: str) -> str:
        return self.places[replica_id].zone

    def busy(self) -> list[str]:
        return [i for i, m in self.fleet.members.items() if m.legs]

    async def answer(self, name: str, tokens: int) -> list[int]:
        request = GenerationRequest(id=name, prompt_token_ids=[tokens, 0])
        return [t async for events in self.fleet.generate(request) for e in events for t in e.token_ids]

    async def until_ready(self, count: int) -> list[str]:
        await until(lambda: len(self.ready) == count)
        return self.ready


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
async def gateway(nodes: Nodes) -> AsyncIterator[Callable[..., Any]]:
    """Makes gateways; ends them after the test."""
    made: list[Gateway] = []

    async def make(plan: Plan, *, address: str = "", name: str = "g") -> Gateway:
        made.append(Gateway(address or nodes.address, plan, name))
        await made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.stop()


def pids(actor: str, *, program: str = "") -> list[int]:
    """Of Ray's worker processes with that actor class, or of another program of Ray."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if program in line.split("\0")[0] if program else line.startswith(f"ray::{actor}"):
                found.append(int(entry.name))
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
