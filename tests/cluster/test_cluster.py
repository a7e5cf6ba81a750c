"""A fleet on a Ray cluster of several nodes keeps its promises while nodes, actors and connections end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import ray
from structlog.testing import capture_logs

from stoa.engine.config import EngineConfig
from stoa.errors import EngineUnavailable, UnsupportedModel
from stoa.fleet.cluster.controls import RayControls
from stoa.fleet.cluster.plan import NAMESPACE, OfferPlan, Plan
from stoa.fleet.reports import ClusterUnreachable
from tests.cluster.conftest import Nodes, kill, make_plan, pids, until
from tests.fleet.test_notices import Metadata

Make = Callable[..., Any]
TOKENS = 400  # about two seconds of the fake engine


def replica_actor(plan: Plan, replica_id: str) -> Any:
    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
    name = next(n for n in names if n.startswith(plan.replica_prefix) and n.endswith(replica_id))
    return ray.get_actor(name, namespace=NAMESPACE)


async def test_replicas_are_spread_and_serve(gateway: Make) -> None:
    """One in each zone, with its market and its address; requests are answered by them."""
    g = await gateway(make_plan(min_replicas=3))
    ready = await g.until_ready(3)
    assert {(g.places[i].zone, g.places[i].market) for i in ready} == {
        ("a", "spot"), ("b", "spot"), ("c", "on_demand")
    }  # fmt: skip
    answers = await asyncio.gather(*(g.answer(str(i), 20) for i in range(30)))
    assert answers == [list(range(20))] * 30


async def test_several_gateways_share_one_fleet(gateway: Make, nodes: Nodes) -> None:
    """Also one that comes through Ray's client: the same replicas, one controller."""
    plan = make_plan(min_replicas=2)
    a = await gateway(plan, name="a")
    b = await gateway(plan, name="b", address=f"ray://127.0.0.1:{nodes.client_port}")
    ready = await a.until_ready(2)
    assert await b.until_ready(2) == ready
    assert await a.answer("x", 10) == await b.answer("x", 10) == list(range(10))
    assert len(pids("ControllerActor")) == 1


async def test_scale_from_zero_and_back(gateway: Make) -> None:
    """The fleet's own autoscaler: the first request is held and brings a replica; idleness takes it away."""
    plan = make_plan(policy="stoa.fleet.policies.autoscaler:Elastic", idle_s=2.0)
    g = await gateway(plan)
    assert await g.answer("a", 10) == list(range(10))
    await until(lambda: not g.places)
    assert await g.answer("b", 10) == list(range(10))


async def test_a_node_that_dies_interrupts_no_stream(gateway: Make, nodes: Nodes) -> None:
    """Power off: what ran there goes on elsewhere, and another replica comes in another zone."""
    g = await gateway(make_plan(min_replicas=2))
    await g.until_ready(2)
    asked = [asyncio.create_task(g.answer(str(i), TOKENS)) for i in range(6)]
    await until(lambda: len(g.busy()) == 2)
    before = g.ready
    await asyncio.to_thread(nodes.kill, "a")
    assert await asyncio.gather(*asked) == [list(range(TOKENS))] * 6
    await until(lambda: len(g.ready) == 2 and g.ready != before)
    assert {g.zone(i) for i in g.ready} == {"b", "c"}


async def test_a_node_that_drains_is_left_in_time(gateway: Make, nodes: Nodes) -> None:
    """Gateways learn the deadline, move what runs there, and the replica ends before it."""
    g = await gateway(make_plan(min_replicas=2))
    ready = await g.until_ready(2)
    leaving = next(i for i in ready if g.zone(i) == "b")
    asked = [asyncio.create_task(g.answer(str(i), TOKENS)) for i in range(6)]
    await until(lambda: len(g.busy()) == 2)
    nodes.drain("b", 60)
    await until(lambda: g.places[leaving].state == "draining")
    assert 30 < g.places[leaving].ends_in_s <= 60
    await until(lambda: leaving not in g.places, 30)
    assert await asyncio.gather(*asked) == [list(range(TOKENS))] * 6
    await g.until_ready(2)
    assert {g.zone(i) for i in g.ready} == {"a", "c"}
    await asyncio.to_thread(nodes.kill, "b")


async def test_sigterm_of_a_replica_is_a_notice(gateway: Make) -> None:
    """The actor's process does not end; the gateway moves away, then it is stopped."""
    plan = make_plan(min_replicas=1, notice_s=20.0)
    g = await gateway(plan)
    (replica,) = await g.until_ready(1)
    asked = asyncio.create_task(g.answer("a", TOKENS))
    await until(g.busy)
    kill(pids("ReplicaActor")[0], signal.SIGTERM)
    await until(lambda: g.places[replica].state == "draining")
    assert 10 < g.places[replica].ends_in_s <= 20
    assert await asked == list(range(TOKENS))
    await until(lambda: replica not in g.places)
    await g.until_ready(1)


async def test_an_actor_that_is_killed_takes_its_engine_along(gateway: Make) -> None:
    """kill -9 of the supervisor: no engine is left behind, another replica comes."""
    g = await gateway(make_plan(min_replicas=1))
    (replica,) = await g.until_ready(1)
    asked = asyncio.create_task(g.answer("a", TOKENS))
    await until(g.busy)
    kill(pids("ReplicaActor")[0])
    assert await asked == list(range(TOKENS))
    await until(lambda: replica not in g.places)


async def test_an_engine_that_dies_takes_its_actor_along(gateway: Make) -> None:
    """kill -9 of the engine: its resources are given back and used again."""
    plan = make_plan(min_replicas=1)
    g = await gateway(plan)
    (replica,) = await g.until_ready(1)
    pid = g.fleet.members[replica].replica.link.hello.pid
    kill(pid)
    await until(lambda: g.ready and g.ready != [replica])
    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
    assert sum(n.startswith(plan.replica_prefix) for n in names) == 1


async def test_a_controller_that_dies_is_succeeded(gateway: Make) -> None:
    """Ray starts it again; it finds the replicas, and no request notices."""
    g = await gateway(make_plan(min_replicas=2))
    ready = await g.until_ready(2)
    epoch = g.state.epoch
    asked = asyncio.create_task(g.answer("a", TOKENS))
    await until(g.busy)
    kill(pids("ControllerActor")[0])
    await until(lambda: g.state.epoch != epoch and g.state.known)
    assert await asked == list(range(TOKENS))
    assert g.ready == ready
    assert {i: p.state for i, p in g.places.items()} == dict.fromkeys(ready, "ready")


async def test_a_bridge_that_dies_is_replaced(gateway: Make) -> None:
    """Meanwhile the gateway goes on with the replicas it has."""
    g = await gateway(make_plan(min_replicas=1))
    ready = await g.until_ready(1)
    kill(g.controls._process.pid)
    assert await g.answer("a", 20) == list(range(20))
    await until(lambda: g.controls._process is not None)
    version = g.state.version
    assert g.ready == ready
    assert g.state.version == version


async def test_a_model_that_cannot_start_refuses_requests_and_says_why_to_operators(gateway: Make) -> None:
    """The engine's own words come from its node to the gateway; the client that waits hears that there is no replica."""
    g = await gateway(make_plan(engine=EngineConfig(model="unsupported"), min_replicas=1))
    with pytest.raises(EngineUnavailable, match="no replica can be started"):
        await g.answer("a", 3)
    assert isinstance(g.fleet.hopeless, UnsupportedModel)
    assert "Fancy" in g.fleet.hopeless.message


async def test_a_cloud_that_announces_the_end_is_believed(gateway: Make) -> None:
    """The replica's actor asks the metadata service of its machine."""
    metadata = Metadata()
    try:
        page = ("GET", "/computeMetadata/v1/instance/preempted")
        metadata.pages[page] = (200, {"Metadata-Flavor": "Google"}, "FALSE")
        g = await gateway(make_plan(min_replicas=1, metadata={"gcp": metadata.url}))
        (replica,) = await g.until_ready(1)
        metadata.pages[page] = (200, {"Metadata-Flavor": "Google"}, "TRUE")
        await until(lambda: g.places[replica].state == "draining")
        assert 10 < g.places[replica].ends_in_s <= 30
    finally:
        metadata.close()


async def test_a_head_that_does_not_answer_stops_nobody(gateway: Make) -> None:
    """Its process stands still: requests are answered, replicas stay; when it goes on, so does everything."""
    g = await gateway(make_plan(min_replicas=1))
    ready = await g.until_ready(1)
    (head,) = pids("", program="gcs_server")
    kill(head, signal.SIGSTOP)
    try:
        for i in range(4):
            assert await g.answer(str(i), 100) == list(range(100))
            await asyncio.sleep(0.5)
    finally:
        kill(head, signal.SIGCONT)
    version = g.state.version
    assert g.ready == ready
    kill(g.fleet.members[ready[0]].replica.link.hello.pid)
    await until(lambda: g.ready and g.ready != ready)
    assert g.state.version > version


async def test_without_room_nothing_is_promised(gateway: Make) -> None:
    """Replicas beyond the machines are refused at once, not left pending, and gateways hear why."""
    plan = make_plan(min_replicas=8, cpus=2.0)
    g = await gateway(plan)
    await g.until_ready(3)
    await asyncio.sleep(1.5)
    assert set(g.places) == set(g.ready)
    await until(lambda: "a (spot): no node there is free for a replica (2 CPU)" in g.state.refusals)


async def test_a_replica_that_no_node_can_hold_is_told(gateway: Make) -> None:
    """With what it needs: by price or not, nothing can be launched."""
    g = await gateway(make_plan(min_replicas=1, cpus=16.0, memory_bytes=1 << 30, labels={"tier": "x"}))
    await until(lambda: g.fleet.refusals)
    assert g.fleet.refusals == (
        "no node of the cluster is large enough for a replica (16 CPU, 1 GiB memory, label tier=x)"
    )


async def test_offers_where_no_node_is_are_told_at_the_start(gateway: Make) -> None:
    """As is which of the first gateway's settings a later one has to live with."""
    plan = make_plan(offers=[OfferPlan("a", "spot", 0.3), OfferPlan("mars", "spot", 0.1)])
    with capture_logs() as logs:
        await gateway(plan)
        await gateway(msgspec.structs.replace(plan, max_replicas=9, offers=[]), name="b")
    first, second = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert "zone mars, where no node is" in first
    assert "nodes are in a, b, c, default" in first
    assert "keeps its first gateway's offers, max_replicas;" in second


async def test_a_signal_to_the_gateways_terminal_spares_its_bridge() -> None:
    """Ctrl-C goes to all processes of its session's foreground; the gateway still has requests to end."""
    controls = RayControls("127.0.0.1:1", make_plan())
    connecting = asyncio.create_task(controls.connect())
    await until(lambda: controls._process is not None)
    assert os.getsid(controls._process.pid) == controls._process.pid
    with pytest.raises(ClusterUnreachable):
        await connecting


async def test_deserted_fleets_end(gateway: Make) -> None:
    """When no gateway has asked for orphan_s, replicas and controller are gone, though it was killed meanwhile."""
    plan = make_plan(min_replicas=1, orphan_s=2.0)
    g = await gateway(plan)
    await g.until_ready(1)
    await g.stop()
    kill(pids("ControllerActor")[0])
    await until(
        lambda: not [a for a in ray.util.list_named_actors(all_namespaces=True) if plan.name in a["name"]]
    )


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "ray://no-such-host.invalid:10001"])
async def test_an_unreachable_head_is_said_at_once(address: str) -> None:
    """With the address that was tried."""
    controls = RayControls(address, make_plan())
    with pytest.raises(ClusterUnreachable, match="no Ray head answers at"):
        await controls.connect()
    await controls.close()


async def test_a_wrong_token_is_said(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to set."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
    controls = RayControls(nodes.address, make_plan())
    with pytest.raises(ClusterUnreachable, match="RAY_AUTH_TOKEN"):
        await controls.connect()
    await controls.close()
