"""Where a plan lets requests go: never outside, by its shares while load allows, to remotes by its rules."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.contract import REMOTE
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.router import Ask, Costs, Place, ReplicaLoad, View
from stoa.fleet.policies.steering import SLACK, WINDOW, Steering
from tests.fleet.policies.plans import GUARDED, HALVES, NOON_S, model_plan

ZONES = ["local", "a", "moon", ""]


class Yard:
    """Replicas in front of a `Steering`. Requests stay until they are told to leave."""

    def __init__(
        self, plan: ModelPlan, replicas: Mapping[str, str], remotes: Mapping[str, str] | None = None
    ) -> None:
        """By id: the zone, or what a remote says of its place."""
        self.view, self.steering = View(Costs(prompt_token_s=1e-3)), Steering(plan)
        self.rng = random.Random(0)
        self.now_s = 0.0
        self.places: list[Place] = []
        for kind, ours in ((replicas, True), (remotes or {}, False)):
            for name, zone in kind.items():
                self.steering.add(name, zone, ours=ours)
                self.view.add(ReplicaLoad(name, slots=4, handicap_s=0.0 if ours else 1.0))

    def ask(self, project: str = "anybody", *, stay: bool = False, **more: Any) -> str | None:
        """Where it went."""
        ask = Ask(project, prompt_tokens=100, **more)
        self.steering.asked(ask)
        index = self.steering.choose(ask, self.view, self.rng, self.now_s)
        if index is None:
            return None
        place = self.view.send(index, ask)
        self.places.append(place)
        if not stay:
            place.leave()
        return place.load.id

    def close(self, *names: str) -> None:
        for load in self.view.replicas:
            load.taking = load.id not in names

    def load(self, name: str, running: int) -> None:
        """So many requests run there, whose prompts are still to be computed."""
        load = self.view.replicas[self.view.index[name]]
        load.running, load.prompt_tokens = running, 100 * running


def count(yard: Yard, requests: int, project: str = "anybody", **more: Any) -> Counter[str | None]:
    return Counter(yard.ask(project, **more) for _ in range(requests))


# -- residency


@settings(deadline=None, max_examples=200)
@given(
    replicas=st.lists(st.sampled_from(ZONES), max_size=6),
    remotes=st.lists(st.sampled_from(ZONES), max_size=3),
    shares=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3),
    asks=st.lists(
        st.tuples(
            st.sampled_from(["clinic", "anybody"]),
            st.sampled_from(["interactive", "batch"]),
            st.sampled_from([None, "x"]),
            st.booleans(),
            st.sets(st.integers(0, 8), max_size=4),
        ),
        max_size=40,
    ),
)
def test_a_restricted_request_never_leaves_its_places(
    replicas: list[str], remotes: list[str], shares: tuple[float, ...], asks: Sequence[Any]
) -> None:
    """Whatever is there, down, loaded, weighted, or open for overflow; and everybody else does get a replica of ours."""
    office, cloud, there = shares
    plan = model_plan(
        {
            "weights": [
                {
                    "groups": ["others"],
                    "places": {"office": [office], "cloud": [cloud]},
                    "remotes": {"r0": [there]},
                }
            ],
            "overflow": [{"remote": f"r{i}", "wait_s": 0} for i in range(3)],
        },
        groups=GUARDED,
    )
    zones = {f"o{i}": zone for i, zone in enumerate(replicas)}
    theirs = {f"r{i}": zone for i, zone in enumerate(remotes)}
    yard = Yard(plan, zones, theirs)
    for project, service, adapter, stay, down in asks:
        closed = {name for i, name in enumerate([*zones, *theirs]) if i in down}
        yard.close(*closed)
        went = yard.ask(project, service=service, adapter=adapter, stay=stay)
        if project == "clinic":
            assert went is None or (zones | theirs)[went] == "local"
            assert went is not None or not [n for n, z in zones.items() if z == "local" and n not in closed]
        else:
            assert went is not None or not zones.keys() - closed
        assert went not in closed


def test_what_says_nothing_of_itself_is_outside() -> None:
    """Also a remote whose name is that of a place."""
    yard = Yard(model_plan(groups=GUARDED), {"o": "moon"}, {"office": ""})
    assert yard.ask("clinic") is None
    assert yard.ask() == "o"
    assert not yard.steering.may("clinic", "nobody")
    yard.steering.add("p", "local", ours=True)
    assert yard.steering.may("clinic", "p")


def test_adapters_stay_where_their_project_may_be_served() -> None:
    """Those that are everybody's go anywhere."""
    steering = Yard(model_plan(groups=GUARDED), {"o": "local", "c": "a"}).steering
    assert [steering.may_hold("clinic:123", name) for name in ("o", "c", "nobody")] == [True, False, False]
    assert all(steering.may_hold(adapter, "c") for adapter in ("123", "anybody:123"))


# -- shares


@pytest.mark.parametrize("wanted", [0.5, 0.8, 1.0])
def test_shares_are_kept(wanted: float) -> None:
    """Within the slack, whatever the numbers of replicas are."""
    weights = {"places": {"office": [wanted], "cloud": [1 - wanted]}}
    yard = Yard(model_plan({"weights": [weights]}), {"o": "local", "a": "a", "b": "b", "c": "a"})
    found = count(yard, 4 * WINDOW)
    assert found["o"] / (4 * WINDOW) == pytest.approx(wanted, abs=SLACK + 0.02)


def test_shares_do_not_part_a_request_from_its_adapter() -> None:
    """Where two places are within their shares, the one that holds the adapter is taken."""
    weights = {"places": {"office": [0.5], "cloud": [0.5]}}
    yard = Yard(model_plan({"weights": [weights]}), {"o": "local", "a": "a"})
    homes = [{yard.ask(adapter=f"{i}") for _ in range(2)} for i in range(200)]
    assert sum(len(home) == 1 for home in homes) > 150


def test_load_goes_before_shares() -> None:
    """A place that would make requests wait longer than the plan bears gets no more of them."""
    weights = {"places": {"office": [0.9], "cloud": [0.1]}}
    section = {"weights": [weights], "imbalance_s": 0.5}
    yard = Yard(model_plan(section), {"o": "local", "a": "a"})
    yard.load("o", 20)
    assert count(yard, 100)["o"] == 0
    yard.load("o", 3)
    yard.load("a", 1)
    assert count(yard, 100)["o"] > 80


def test_shares_change_with_the_period_and_with_the_class() -> None:
    """Weights for a class win over those for all."""
    weights = [
        {"places": {"office": [1, 0], "cloud": [0, 1]}},
        {"service": "batch", "places": {"cloud": [1, 1]}},
    ]
    yard = Yard(model_plan({"weights": weights}, periods=HALVES), {"o": "local", "a": "a"})
    assert count(yard, 300)["o"] > 280
    assert count(yard, 300, service="batch")["a"] > 280
    yard.now_s = NOON_S
    assert count(yard, 300)["a"] > 280


def test_a_place_that_is_down_is_made_up_for() -> None:
    """Shares of those that are there; nothing is held for the others."""
    weights = {"places": {"office": [0.9], "cloud": [0.1]}}
    yard = Yard(model_plan({"weights": [weights]}), {"o": "local", "a": "a"})
    yard.close("o")
    assert count(yard, 50) == {"a": 50}


# -- remotes


def overflow(**rule: Any) -> ModelPlan:
    return model_plan({"overflow": [{"remote": "r", **rule}]}, groups=GUARDED)


def test_a_remote_that_the_plan_does_not_name_gets_nothing() -> None:
    """Not even when nobody else is there."""
    yard = Yard(model_plan(), {"o": "local"}, {"r": "a"})
    assert count(yard, 50) == {"o": 50}
    yard.close("o")
    assert yard.ask() is None


def test_overflow_begins_where_waiting_would_be_too_long() -> None:
    """Not at the threshold, and only for the groups and classes of the rule."""
    yard = Yard(overflow(wait_s=0.5, groups=["others"], service="interactive"), {"o": "local"}, {"r": "a"})
    yard.load("o", 3)
    assert yard.ask(service="interactive") == "o"
    yard.load("o", 8)
    assert yard.ask(service="interactive") == "r"
    assert yard.ask(service="batch") == "o"
    assert yard.ask("clinic", service="interactive") == "o"


def test_overflow_may_wait_until_nobody_is_there() -> None:
    """`no_replica`: however long the queue is."""
    yard = Yard(overflow(after="no_replica"), {"o": "local"}, {"r": "a"})
    yard.load("o", 100)
    assert yard.ask() == "o"
    yard.close("o")
    assert yard.ask() == "r"
    assert yard.ask("clinic") is None


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1), st.lists(st.booleans(), min_size=1, max_size=300))
def test_overflow_keeps_to_its_share(most: float, busy: list[bool]) -> None:
    """At no time more of the requests that the rule is for, however long our own are busy."""
    yard = Yard(overflow(wait_s=0.5, most_share=most), {"o": "local"}, {"r": "a"})
    sent = 0
    for i, late in enumerate(busy, 1):
        yard.load("o", 50 if late else 0)
        sent += yard.ask() == "r"
        assert sent <= most * min(i, WINDOW) + 1e-6 or i > WINDOW
        assert most < 1 or not late or sent


def test_the_best_of_ours_decides() -> None:
    """A replica that holds the adapter and is busy is no reason to pay, while another is idle."""
    yard = Yard(overflow(wait_s=0.5), {"o": "local", "p": "local"}, {"r": "a"})
    yard.ask(adapter="x")
    (holder,) = yard.view.adapters.holders("x")
    yard.load(holder, 6)
    assert yard.ask(adapter="x") != "r"


def test_a_busy_remote_is_no_way_out() -> None:
    """Where it would make the request wait longer than our own."""
    yard = Yard(overflow(wait_s=0.5), {"o": "local"}, {"r": "a"})
    yard.load("o", 8)
    yard.load("r", 50)
    assert yard.ask() == "o"


def test_a_share_of_a_remote_is_the_most_it_gets() -> None:
    """Also when our own are slow, or gone."""
    weights = {"groups": ["others"], "places": {"office": [0.7]}, "remotes": {"r": [0.3]}}
    yard = Yard(model_plan({"weights": [weights]}, groups=GUARDED), {"o": "local"}, {"r": "a"})
    found = count(yard, 4 * WINDOW)
    assert 0.3 - SLACK - 0.02 < found["r"] / (4 * WINDOW) <= 0.3 + 0.01
    yard.load("o", 200)
    assert count(yard, 500)["r"] / 500 < 0.4  # up to its share, over the window
    assert count(yard, 20, "clinic") == {"o": 20}
    yard.close("o")
    assert count(yard, 50)[None] > 0


def test_a_remote_may_stand_for_a_place() -> None:
    """Another Stoa there is as good as replicas of ours, with the place's share; one that says it is elsewhere is not."""
    places = [
        {"name": "office", "zones": ["local"]},
        {"name": "cloud", "zones": ["a"], "remotes": ["r", "s"]},
    ]
    weights = {"places": {"office": [0.5], "cloud": [0.5]}}
    yard = Yard(model_plan({"weights": [weights]}, places=places), {"o": "local"}, {"r": "a", "s": "local"})
    found = count(yard, 2 * WINDOW)
    assert found["r"] / (2 * WINDOW) == pytest.approx(0.5, abs=SLACK + 0.02)
    assert found["s"] == 0


def test_names_of_remotes_and_places_do_not_meet() -> None:
    """A remote called like a place has its own share."""
    weights = {"places": {"office": [0.5]}, "remotes": {"office": [0.5]}}
    yard = Yard(model_plan({"weights": [weights]}), {"o": "local"}, {"office": "a"})
    found = count(yard, 2 * WINDOW)
    assert 0.4 < found["office"] / (2 * WINDOW) < 0.52
    assert REMOTE + "office" not in yard.view.index
