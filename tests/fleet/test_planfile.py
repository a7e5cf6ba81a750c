"""A plan on disk: taken when it is right, kept while the next one is not, and told to whoever decides about replicas."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from stoa.errors import ConfigError
from stoa.fleet.fleet import Fleet
from stoa.fleet.membership import Membership
from stoa.fleet.planfile import PlanFile, check_names
from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.contract import write_plan
from stoa.fleet.policies.facts import Bounds
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.reports import FleetState, GatewayReport, PlanNews
from tests.fleet.fake_backend import SPOT
from tests.fleet.policies.plans import GUARDED, MODEL, fleet_plan, model_plan, target
from tests.fleet.test_controller import Gateway, World


def save(path: Path, made: str, at_s: int, **parts: Any) -> None:
    write_plan(fleet_plan(made=made, **parts), path)
    os.utime(path, (at_s, at_s))


def made(plan: ModelPlan | None) -> str | None:
    return plan.file.made if plan is not None else None


async def test_a_new_plan_is_taken_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    """The log says why, once; whatever is wrong, the old plan stays, and a right one comes after it."""
    path = tmp_path / "plan.json"
    save(path, "first", 100)
    file = PlanFile(path, MODEL, now=lambda: 500.0)
    assert (made(file.plan), await file.changed()) == ("first", None)
    save(path, "second", 200)
    assert made(await file.changed()) == "second"
    for text in ("{", '{"version": 9}', None):
        path.unlink() if text is None else path.write_text(text)
        with capture_logs() as logs:
            assert await file.changed() is None
            assert await file.changed() is None
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert "the old one stays" in logs[0]["event"]
        assert made(file.plan) == "second"
    save(path, "third", 300)
    assert made(await file.changed()) == "third"


async def test_a_plan_that_was_put_back_is_new(tmp_path: Path) -> None:
    """Though what is in it was written before: a copy keeps that, and what counts is when it was put there."""
    path = tmp_path / "plan.json"
    save(path, "new", 300)
    file = PlanFile(path, MODEL)
    before_s = file.plan.read_s
    save(path, "old", 100)
    assert made(await file.changed()) == "old"
    assert file.plan.read_s > before_s
    again = PlanFile(path, MODEL)  # a gateway that starts now agrees
    assert again.plan.read_s == file.plan.read_s


async def test_a_passing_fault_is_tried_again(tmp_path: Path) -> None:
    """A plan that could not be checked, or read, is neither followed nor forgotten."""
    path = tmp_path / "plan.json"
    save(path, "first", 100)
    file = PlanFile(path, MODEL)
    save(path, "second", 200)
    faults = [OSError("the database is locked")]

    async def check(plan: ModelPlan) -> None:
        if faults:
            raise faults.pop()

    with pytest.raises(OSError, match="locked"):
        await file.changed(check)
    assert made(file.plan) == "first"
    assert made(await file.changed(check)) == "second"


def test_without_a_right_plan_nothing_starts(tmp_path: Path) -> None:
    """A file that is missing, and one that has nothing to say of this model."""
    with pytest.raises(ConfigError, match="cannot be read"):
        PlanFile(tmp_path / "plan.json", MODEL)
    save(tmp_path / "plan.json", "x", 1)
    with pytest.raises(ConfigError, match="no model 'other'"):
        PlanFile(tmp_path / "plan.json", "other")


async def test_projects_are_meant_by_their_ids(tmp_path: Path) -> None:
    """A plan that calls one by its name would keep nobody anywhere: it is refused, also when it comes later."""
    names = {"proj_1": "clinic", "proj_2": "shop"}
    rules = [{"name": "r", "projects": ["proj_*", "later-*"], "places": ["office"]}]
    check_names(model_plan(rules=rules), names)
    with pytest.raises(ConfigError, match="'clinic', which is a name; accepted: ids, here proj_1"):
        check_names(model_plan(groups=GUARDED), names)
    with pytest.raises(ConfigError, match="'cli\\*'"):
        check_names(model_plan(rules=[{"name": "r", "projects": ["cli*"], "places": []}]), names)
    check_names(model_plan(groups=GUARDED), names | {"clinic": "clinic"})
    path = tmp_path / "plan.json"
    save(path, "first", 100)
    file = PlanFile(path, MODEL)
    save(path, "second", 200, groups=GUARDED)

    async def check(plan: ModelPlan) -> None:
        check_names(plan, names)

    with capture_logs() as logs:
        assert await file.changed(check) is None
    assert "nobody has made yet" in logs[0]["event"]
    assert "which is a name" in logs[1]["error"]
    assert made(file.plan) == "first"


async def test_who_watches_is_told(tmp_path: Path) -> None:
    """Also after a listener has failed."""
    path, heard = tmp_path / "plan.json", []
    save(path, "first", 100)
    file = PlanFile(path, MODEL)

    def tell(plan: ModelPlan) -> None:
        heard.append(made(plan))
        if len(heard) == 1:
            raise ValueError("a listener stumbles")

    watching = asyncio.create_task(file.watch(tell, every_s=0.01))
    with capture_logs():
        for number, name in enumerate(("second", "third"), 2):
            save(path, name, 100 * number)
            async with asyncio.timeout(5):
                while name not in heard:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    watching.cancel()
    assert heard == ["second", "third"]


# -- who decides about replicas


class Desk:
    """Controls that remember reports, and follow a plan as soon as they have heard of it."""

    def __init__(self) -> None:
        self.reports: list[GatewayReport] = []
        self.plan_s = 0.0

    async def report(self, report: GatewayReport) -> FleetState:
        self.reports.append(report)
        if report.plan is not None:
            self.plan_s = max(self.plan_s, report.plan.read_s)
        return FleetState(epoch="e", version=1, known=True, plan_s=self.plan_s)

    async def hold_still(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_controller_hears_of_a_plan_until_it_has_it() -> None:
    """Once; again when it has forgotten it, as one that has started anew has."""
    desk = Desk()
    membership = Membership(Fleet(), desk, gateway="g", slots=1)
    await membership.exchange()
    membership.follow(model_plan())
    for _ in range(3):
        await membership.exchange()
    desk.plan_s = 0.0
    for _ in range(3):
        await membership.exchange()
    assert [report.plan is not None for report in desk.reports] == [
        False, True, False, False, False, True, False,
    ]  # fmt: skip


def news(plan: ModelPlan, read_s: float) -> PlanNews:
    return PlanNews(file=plan.file, model=MODEL, machine="", read_s=read_s)


ZONE = [{"name": "cloud", "zones": [SPOT.zone]}, {"name": "office"}]


async def test_the_controller_follows_the_latest_plan() -> None:
    """Its replicas come, go with the next plan, and an older one of another gateway changes nothing."""
    world = World(policy=Elastic(), bounds=Bounds(0, 10, idle_s=5.0))
    gateway = Gateway(world)
    for count, read_s in ((3, 5.0), (1, 9.0), (2, 7.0)):
        plan = model_plan({"targets": [target("cloud", "spot", [count], 3)]}, places=ZONE)
        assert gateway.report(plan=news(plan, read_s)).plan_s == (5.0 if read_s == 5.0 else 9.0)
        await gateway.live(20)
        for name in world.backend.replicas:
            if world.backend.replicas[name].phase == "pending":
                world.backend.ready(name)
        await gateway.live(20)
        wanted = 3 if read_s == 5.0 else 1
        assert len(world.backend.replicas) == wanted


async def test_the_controller_hears_who_may_not_go_everywhere() -> None:
    """A restricted request brings a replica to its place, though the plan has none there."""
    world = World(policy=Elastic(), bounds=Bounds(0, 10, idle_s=60.0))
    gateway = Gateway(world)
    places = [{"name": "office", "zones": [SPOT.zone]}, {"name": "cloud"}]
    plan = model_plan({"targets": [target("office", "spot", [0], 2)]}, places=places, groups=GUARDED)
    gateway.report(plan=news(plan, 5.0), held=1, in_flight=1, confined={"office": 1})
    await gateway.live(3)
    assert [status.offer for status in world.backend.replicas.values()] == [SPOT]


def test_a_plan_travels_in_a_report() -> None:
    """To a controller in another process."""
    plan = model_plan({"targets": [target("cloud", "spot", [1], None)]}, groups=GUARDED)
    report = GatewayReport(gateway="g", confined={"office": 2}, plan=news(plan, 5.0))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=GatewayReport) == report


async def test_a_policy_of_another_kind_goes_on() -> None:
    """It is asked as before, and the log says that it takes no plan."""
    world = World(wanted=1)
    with capture_logs() as logs:
        Gateway(world).report(plan=news(model_plan(), 5.0))
    await world.tick(2)
    assert len(world.backend.replicas) == 1
    assert any("takes no plan" in entry["event"] for entry in logs)
