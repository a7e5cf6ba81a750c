"""A fleet that follows a plan sends no request of a restricted project outside its places, whatever happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.engine.request import AdapterRef, GenerationRequest
from stoa.errors import EngineUnavailable, NoAllowedReplica, StoaError
from stoa.fleet.fleet import Fleet
from tests.fleet.fake_replica import FakeReplica
from tests.fleet.policies.plans import GUARDED, OTHERS, model_plan

PLAN = model_plan(groups=GUARDED)
ADAPTER = AdapterRef(id="clinic:0123", path="/adapters/x")


def office(name: str = "office-1", **more: Any) -> FakeReplica:
    return FakeReplica(name, zone="local", **more)


def cloud(name: str = "cloud-1", **more: Any) -> FakeReplica:
    return FakeReplica(name, zone="a", **more)


def fleet_of(*replicas: FakeReplica, holds: bool = True, hold_s: float = 5.0) -> Fleet:
    fleet = Fleet(hold_s=hold_s, again_s=0.05, now=lambda: 0.0)
    fleet.holds = holds
    fleet.follow(PLAN)
    for replica in replicas:
        fleet.add(replica)
    return fleet


def asking(fleet: Fleet, name: str = "q", project: str = "clinic", **more: Any) -> asyncio.Task[list[int]]:
    request = GenerationRequest(id=name, prompt_token_ids=[1, 2, 3], project=project, **more)

    async def answer() -> list[int]:
        async with asyncio.timeout(10):
            return [t async for events in fleet.generate(request) for e in events for t in e.token_ids]

    return asyncio.create_task(answer())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_failed_request_waits_for_its_own_place() -> None:
    """It goes on in the office when that is back, and was never in the cloud meanwhile."""
    ours, theirs = office(), cloud()
    fleet = fleet_of(ours, theirs)
    asked = asking(fleet)
    await until(lambda: ours.asked)
    ours.say(7)
    ours.lose()
    ours.become(False)
    await until(lambda: fleet.held)
    assert fleet.confined() == {"office": 1}
    ours.become(True)
    await until(lambda: len(ours.asked) == 2)
    ours.say(8, last=True)
    assert await asked == [7, 8]
    assert not theirs.asked


async def test_a_drained_replica_hands_over_within_the_place() -> None:
    """To another one there; while there is none, what runs stays until it must end, and is held then."""
    ours, theirs = office(), cloud()
    fleet = fleet_of(ours, theirs)
    asked = asking(fleet)
    await until(lambda: ours.asked)
    ours.say(7)
    await fleet.drain("office-1", grace_s=0.2)
    assert (len(ours.asked), theirs.asked, ours.in_flight) == (1, [], 1)
    fleet.add(second := office("office-2"))
    draining = asyncio.create_task(fleet.drain("office-1", grace_s=5))
    await until(lambda: second.asked)
    second.say(8)
    await draining
    await fleet.remove("office-1")
    await fleet.remove("office-2")
    await until(lambda: fleet.held)
    fleet.add(third := office("office-3"))
    await until(lambda: third.asked)
    third.say(9, last=True)
    assert await asked == [7, 8, 9]
    assert not theirs.asked


async def test_what_waits_too_long_gets_a_typed_error() -> None:
    """503, with the places; not at once, and not from elsewhere. Others get what they always got."""
    theirs = cloud()
    fleet = fleet_of(theirs, hold_s=0.1)
    with pytest.raises(NoAllowedReplica, match=r"may be served \(office\)") as caught:
        await asking(fleet)
    assert (caught.value.status, caught.value.code) == (503, "no_allowed_replica")
    assert not theirs.asked
    theirs.become(False)
    with pytest.raises(EngineUnavailable, match="no replica has become ready") as other:
        await asking(fleet, project="anybody")
    assert not isinstance(other.value, NoAllowedReplica)


async def test_what_can_never_be_served_is_told_at_once() -> None:
    """No place at all; or none of the replicas of a fleet that does not change."""
    fleet = fleet_of(cloud(), holds=False, hold_s=600)
    with pytest.raises(NoAllowedReplica):
        await asking(fleet)
    nowhere = [{"name": "sealed", "projects": ["clinic"], "places": []}, OTHERS]
    fleet = fleet_of(office(), hold_s=600)
    fleet.follow(model_plan(groups=nowhere))
    with pytest.raises(NoAllowedReplica, match="nowhere"):
        await asking(fleet)


async def test_a_new_plan_moves_what_runs_outside() -> None:
    """Requests go on where they may, from what was said; adapters are forgotten there."""
    ours, theirs = office(ready=False), cloud()
    fleet = Fleet(now=lambda: 0.0)
    fleet.holds = True
    fleet.add(ours)
    fleet.add(theirs)
    asked, other = asking(fleet, adapter=ADAPTER), asking(fleet, "o", "anybody")
    await until(lambda: len(theirs.asked) == 2)
    assert fleet.confined() == {}
    theirs.asked.sort(key=lambda r: r.id)  # the last one is heard
    theirs.say(7)
    await until(lambda: fleet._journeys["q"]._total)
    fleet.follow(PLAN)
    assert theirs.forgot == [ADAPTER.id]
    await until(lambda: fleet.held)
    assert theirs.in_flight == 1
    ours.become(True)
    await until(lambda: ours.asked)
    assert ours.asked[0].so_far == [[7]]
    ours.say(8, last=True)
    assert await asked == [7, 8]
    other.cancel()


async def test_adapters_are_read_within_their_places() -> None:
    """New ones, and those that many ask for; a remote hears nothing of them either."""
    replicas = [office(), office("office-2"), cloud(), FakeReplica("remote", ours=False, zone="")]
    fleet = fleet_of(*replicas)
    await fleet.warm(ADAPTER)
    assert [r.warmed for r in replicas] == [[ADAPTER.id], [ADAPTER.id], [], []]
    tasks = [asking(fleet, f"q{i}", adapter=ADAPTER) for i in range(40)]
    await until(lambda: sum(len(r.asked) for r in replicas) == 40)
    for r in replicas:
        fleet._view.adapters.forget(r.id)
    fleet._placement._turned_s -= 1
    fleet.place_adapters()
    assert [len(r.warmed) for r in replicas] == [2, 2, 0, 0]
    await fleet.warm(AdapterRef(id="0123", path="/adapters/y"))
    assert "0123" in replicas[3].warmed
    for task in tasks:
        task.cancel()


Event = tuple[str, int]
EVENTS = st.tuples(
    st.sampled_from(
        ["ask", "batch", "other", "say", "lose", "down", "up", "drain", "remove", "join", "plan"]
    ),
    st.integers(0, 9),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(EVENTS, min_size=5, max_size=40), st.integers(0, 1000))
def test_no_order_of_events_leads_outside(events: Sequence[Event], seed: int) -> None:
    """Requests, failures, drains, departures, arrivals and new plans as they come: where a restricted request was opened,
    its plan of that moment allowed it."""
    asyncio.run(_live(events, random.Random(seed)))


class _Watched(FakeReplica):
    """Notes what was outside when it was opened."""

    def __init__(self, name: str, zone: str, ours: bool, allowed: Callable[[str], bool]) -> None:
        super().__init__(name, zone=zone, ours=ours)
        self.allowed, self.outside = allowed, 0

    def open(self, request: GenerationRequest, receiver: Any) -> None:
        self.outside += request.project == "clinic" and not self.allowed(self.node.zone)
        super().open(request, receiver)


async def _live(events: Sequence[Event], rng: random.Random) -> None:
    allowed = {"office"}
    zones = {"local": "office", "a": "cloud"}
    fleet = fleet_of()
    made: list[_Watched] = []
    tasks: list[asyncio.Task[Any]] = []

    def join(i: int) -> None:
        zone = ["local", "a", "moon", ""][i % 4]
        made.append(_Watched(f"r{len(made)}", zone, i % 3 > 0, lambda z: zones.get(z) in allowed))
        fleet.add(made[-1])

    def here() -> list[_Watched]:
        return [r for r in made if r.id in fleet.members]

    for i in range(4):
        join(i)
    for number, (kind, i) in enumerate(events):
        there = here()
        one = there[i % len(there)] if there else None
        if kind in ("ask", "batch", "other"):
            project = "anybody" if kind == "other" else "clinic"
            service: Any = "batch" if kind == "batch" else "interactive"
            adapter = ADAPTER if i % 2 and project == "clinic" else None
            tasks.append(asking(fleet, f"q{number}", project, service_class=service, adapter=adapter))
        elif kind == "join":
            join(i)
        elif kind == "plan":
            allowed.clear()
            allowed.update([["office"], ["cloud"], ["office", "cloud"], []][i % 4])
            clinics = {"name": "clinics", "projects": ["clinic"], "places": sorted(allowed)}
            rules = [{"remote": r.id, "wait_s": 0, "most_share": i / 9} for r in there if not r.ours]
            fleet.follow(model_plan({"overflow": rules}, groups=[clinics, OTHERS]))
        elif one is not None:
            await _happen(kind, i, one, fleet, tasks)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if kind == "plan":  # what was there before is on its way out, and not only in words
            assert all(
                fleet._steering.may("clinic", r.id)  # type: ignore[union-attr]
                for r in here()
                for leg in fleet.members[r.id].legs
                if leg.journey.request.project == "clinic" and not leg.over
            )
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, list | StoaError | asyncio.CancelledError | type(None)) for r in results), (
        results
    )
    assert not any(r.outside for r in made)


async def _happen(kind: str, i: int, one: _Watched, fleet: Fleet, tasks: list[asyncio.Task[Any]]) -> None:
    open_ = one.asked and one.asked[-1].id in one._receivers
    if kind == "say" and open_:
        one.say(i, last=i > 7)
    elif kind == "lose" and open_:
        one.lose()
    elif kind in ("down", "up"):
        one.become(kind == "up")
    elif kind == "drain":
        tasks.append(asyncio.create_task(fleet.drain(one.id, 0.05)))
        await asyncio.sleep(0)
    elif kind == "remove" and not fleet.members[one.id].draining:
        await fleet.remove(one.id)
