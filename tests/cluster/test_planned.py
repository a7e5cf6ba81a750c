"""A fleet on a Ray cluster follows a plan that its gateway has read: replicas where it says, requests where they may go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from stoa.engine.request import GenerationRequest
from stoa.fleet.policies.modelplan import ModelPlan
from tests.cluster.conftest import Nodes, make_plan, until
from tests.fleet.policies.plans import MODEL, fleet_plan, target

Make = Callable[..., Any]
ELASTIC = "stoa.fleet.policies.autoscaler:Elastic"
PLACES = [{"name": "home", "zones": ["c"]}, {"name": "cloud", "zones": ["a", "b"]}]
GROUPS = [
    {"name": "clinics", "projects": ["clinic"], "places": ["home"]},
    {"name": "others", "projects": ["*"], "places": ["*"]},
]


def told(read_s: float, home: int, cloud: int) -> ModelPlan:
    targets = [target("home", "owned", [home], 2), target("cloud", "spot", [cloud], 2)]
    plan = fleet_plan({"targets": targets}, places=PLACES, groups=GROUPS)
    return ModelPlan.of(plan, MODEL, read_s=read_s)


def follow(gateway: Any, plan: ModelPlan) -> None:
    gateway.fleet.follow(plan)
    gateway.membership.follow(plan)


async def test_a_plan_is_followed_on_a_cluster(gateway: Make, nodes: Nodes) -> None:
    """Replicas come where it wants them, one more for a request that may go nowhere else, and the next plan holds too."""
    g = await gateway(make_plan(policy=ELASTIC, idle_s=3.0))
    follow(g, told(1.0, 0, 2))
    ready = await g.until_ready(2)
    assert Counter(g.zone(i) for i in ready) == {"a": 1, "b": 1}
    request = GenerationRequest(id="x", prompt_token_ids=[400, 0], project="clinic")
    zones = set()
    async for _ in g.fleet.generate(request):
        zones |= {g.zone(i) for i in g.busy()}
    assert zones == {"c"}
    follow(g, told(2.0, 1, 0))
    await until(lambda: [g.zone(i) for i in g.ready] == ["c"])
    await until(lambda: len(g.places) == 1)
