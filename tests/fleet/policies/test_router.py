"""The router's decisions, on drawn fleets."""

from __future__ import annotations

import copy
import random
import statistics
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.policies.profile import Profile
from stoa.fleet.policies.router import (
    Ask,
    Costs,
    Holdings,
    ReplicaLoad,
    View,
    expected_wait_s,
    homes,
    prefix_chain,
    route,
)

ADAPTERS = [f"adapter-{i}" for i in range(6)]
CHAINS = [[f"{c}/{k}".encode() for k in range(8)] for c in "ab"]
HANDICAPS_S = (0.0, 0.0, 0.5, 1e9)
COSTS = Costs(prompt_token_s=1e-3, running_s=1e-2, slot_s=0.5, adapter_s=0.1, block_tokens=10)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    chain = draw(st.sampled_from(CHAINS))[: draw(st.integers(0, 8))]
    return Ask(
        draw(st.sampled_from("pqr")),
        draw(st.sampled_from([None, *ADAPTERS])),
        draw(st.integers(0, 200)),
        chain,
        frozenset(draw(st.sets(st.sampled_from(["r0", "r1", "r2"]), max_size=2))),
    )


@st.composite
def views(draw: st.DrawFn) -> View:
    """A fleet after some requests, part of them ended; anybody may have stopped taking requests."""
    view = View(COSTS, adapters_each=draw(st.integers(1, 3)), blocks_each=draw(st.integers(1, 20)))
    for i in range(draw(st.integers(1, 6))):
        view.add(ReplicaLoad(f"r{i}", slots=draw(st.integers(1, 8))))
    indices = st.integers(0, len(view.replicas) - 1)
    for index, ask, ended in draw(st.lists(st.tuples(indices, asks(), st.booleans()), max_size=30)):
        place = view.send(index, ask)
        if ended:
            place.leave()
    handicapped = draw(st.booleans())
    for load in view.replicas:
        load.taking = draw(st.booleans())
        load.handicap_s = draw(st.sampled_from(HANDICAPS_S)) if handicapped else 0.0
    return view


def waits(view: View, ask: Ask) -> dict[int, float]:
    return {
        i: expected_wait_s(load, ask.project, view.costs)
        for i, load in enumerate(view.replicas)
        if load.taking and load.id not in ask.not_at
    }


def most_saved_s(view: View, ask: Ask) -> float:
    return 12 * view.costs.adapter_s + ask.prompt_tokens * view.costs.prompt_token_s


@given(views(), asks(), st.integers())
def test_only_a_replica_that_takes_the_request_is_chosen(view: View, ask: Ask, seed: int) -> None:
    """Whatever it holds, one that does not take, or cannot have it, is passed by; None exactly when nobody is left."""
    index = route(ask, view, random.Random(seed))
    assert index in waits(view, ask) if index is not None else not waits(view, ask)


@given(views(), asks(), st.integers())
def test_a_handicap_is_paid_only_where_every_other_waits_longer(view: View, ask: Ask, seed: int) -> None:
    """Without affinity: a paid fallback gets nothing while a replica of ours would serve sooner than its handicap."""
    if ask.adapter is not None or view.prefixes.depths(ask.prefix):
        return
    index = route(ask, view, random.Random(seed))
    seen = waits(view, ask)
    if index is not None:
        lowest_s = min(view.replicas[i].handicap_s for i in seen)
        assert view.replicas[index].handicap_s == lowest_s or seen[index] == min(seen.values())


@given(views(), st.sampled_from("pqr"), st.integers())
def test_equals_are_drawn_as_the_simulators_twin_draws_them(view: View, project: str, seed: int) -> None:
    """Without handicaps, refusals and affinity: two uniform draws, and a third to break a tie."""
    ask = Ask(project)
    for load in view.replicas:
        load.handicap_s = 0.0
    rng, seen = random.Random(seed), waits(view, ask)
    two = list(seen)
    if len(two) > 2:
        first, second = int(rng.random() * len(two)), int(rng.random() * (len(two) - 1))
        two = [two[first], two[second + (second >= first)]]
    best = two[0] if two else None
    if len(two) == 2 and seen[two[1]] == seen[two[0]]:
        best = two[1] if rng.random() * 2 < 1 else two[0]
    elif len(two) == 2 and seen[two[1]] < seen[two[0]]:
        best = two[1]
    assert route(ask, view, random.Random(seed)) == best


def test_a_fallback_gets_what_ours_would_keep_waiting() -> None:
    """An idle replica of ours is taken whatever else is there; an overflow remote once ours wait longer than it costs."""
    view, rng = fleet(1), random.Random(0)
    for name, handicap_s in (("over", 0.5), ("last 1", 1e9), ("last 2", 1e9)):
        view.add(ReplicaLoad(name, handicap_s=handicap_s))
    assert {route(Ask("p"), view, rng) for _ in range(100)} == {0}
    view.replicas[0].running = 60  # 0.6 s
    assert {route(Ask("p"), view, rng) for _ in range(100)} == {1}
    assert {route(Ask("p", not_at=frozenset({"over"})), view, rng) for _ in range(100)} == {0}
    view.replicas[0].taking = view.replicas[1].taking = False
    assert {route(Ask("p"), view, rng) for _ in range(100)} == {2, 3}


@given(views(), asks(), st.integers())
def test_the_same_input_gives_the_same_answer(view: View, ask: Ask, seed: int) -> None:
    """Deciding changes nothing, and depends on nothing but its arguments."""
    before = copy.deepcopy(view)
    first = route(ask, view, random.Random(seed))
    assert route(ask, before, random.Random(seed)) == first
    assert view.replicas == before.replicas
    assert view.flying == before.flying
    for load in view.replicas:
        assert view.adapters.held(load.id) == before.adapters.held(load.id)
        assert view.prefixes.held(load.id) == before.prefixes.held(load.id)


@given(views(), asks(), st.integers())
def test_imbalance_is_bounded(view: View, ask: Ask, seed: int) -> None:
    """With affinity, nobody waits longer for it than what it saves; without, never at the worst of three."""
    index = route(ask, view, random.Random(seed))
    seen = waits(view, ask)
    if index is None:
        return
    if view.adapters.holders(ask.adapter or "") or view.prefixes.depths(ask.prefix):
        assert seen[index] <= min(seen.values()) + most_saved_s(view, ask) + 1e-9
    elif len(seen) > 2 and len(set(seen.values())) == len(seen):
        assert seen[index] < max(seen.values())


@given(views(), st.sampled_from(ADAPTERS), st.integers())
def test_affinity_is_kept_when_load_allows(view: View, adapter: str, seed: int) -> None:
    """A sole holder that waits less than four loads longer than the best is taken."""
    ask = Ask("p", adapter)
    index = route(ask, view, random.Random(seed))
    seen = waits(view, ask)
    holders = [view.index[r] for r in view.adapters.holders(adapter)]
    if (
        len(holders) == 1
        and holders[0] in seen
        and seen[holders[0]] < min(seen.values()) + 4 * COSTS.adapter_s
    ):
        assert index == holders[0]


@given(views(), asks(), st.randoms(use_true_random=False))
def test_the_order_of_replicas_does_not_matter(view: View, ask: Ask, shuffled: random.Random) -> None:
    """But among equals, and without affinity, where two are drawn."""
    for i, load in enumerate(view.replicas):
        load.handicap_s = 1e-5 * i  # nobody equals another
    if ask.adapter is None and not view.prefixes.depths(ask.prefix):
        return
    index = route(ask, view, random.Random(0))
    chosen = None if index is None else view.replicas[index].id
    shuffled.shuffle(view.replicas)
    view.index = {r.id: i for i, r in enumerate(view.replicas)}
    again = route(ask, view, random.Random(0))
    assert chosen == (None if again is None else view.replicas[again].id)


def fleet(count: int, **costs: float) -> View:
    view = View(Costs(**costs) if costs else COSTS)  # type: ignore[arg-type]
    for i in range(count):
        view.add(ReplicaLoad(f"r{i}"))
    return view


def test_the_longest_prefix_is_preferred() -> None:
    """Of replicas equally loaded, the one that has more of the prompt."""
    view = fleet(3)
    view.prefixes.note("r1", CHAINS[0][:3])
    view.prefixes.note("r2", CHAINS[0][:5])
    assert route(Ask("p", None, 100, CHAINS[0]), view, random.Random(0)) == 2


def test_a_queue_outweighs_a_prefix() -> None:
    """The request goes where the rest of its prompt is computed sooner."""
    view = fleet(3)
    view.prefixes.note("r1", CHAINS[0][:3])  # 30 ms of the prompt
    ask = Ask("p", None, 100, CHAINS[0])
    view.replicas[1].running = 2
    assert route(ask, view, random.Random(0)) == 1
    view.replicas[1].running = 4
    assert route(ask, view, random.Random(0)) != 1


def test_a_hot_adapter_gets_further_copies_and_a_rare_one_does_not() -> None:
    """The more requests use an adapter, the shorter they wait before it is loaded elsewhere too."""
    view = fleet(4)
    rng = random.Random(0)
    for _ in range(300):
        index = route(Ask("p", "hot"), view, rng)
        assert index is not None
        view.send(index, Ask("p", "hot"))
    assert len(view.adapters.holders("hot")) == 4
    view = fleet(4)
    view.send(0, Ask("p", "rare")).leave()
    view.replicas[0].running = 60
    assert route(Ask("p", "rare"), view, rng) == 0


def test_cold_adapters_spread_evenly() -> None:
    """Homes of 4,000 adapters: each of 16 replicas has about its share, of first and of second ones."""
    loads = [ReplicaLoad(f"replica-{i}") for i in range(16)]
    found = [homes(f"adapter-{i}", loads) for i in range(4000)]
    for place in (0, 1):
        counts = Counter(f[place] for f in found)
        assert len(counts) == 16
        assert min(counts.values()) > 0.7 * 250
        assert max(counts.values()) < 1.3 * 250
    assert all(first != second for first, second in found)


def test_few_homes_move_when_a_replica_goes() -> None:
    """Only adapters that had a home there get another one; the other stays."""
    loads = [ReplicaLoad(f"replica-{i}") for i in range(8)]
    for i in range(500):
        before = homes(f"adapter-{i}", loads)
        after = homes(f"adapter-{i}", loads[1:])
        assert [h for h in before if h != "replica-0"] == [h for h in after if h in before]


def test_who_floods_waits_and_others_need_not_avoid_the_replica() -> None:
    """The replica shares itself fairly: its backlog counts in full for the project that made it, and for another only
    as much as that one has there itself."""
    load = ReplicaLoad("r", running=40, prompt_tokens=4000, projects={"flood": 40})
    assert expected_wait_s(load, "flood", COSTS) > 4.0
    assert expected_wait_s(load, "steady", COSTS) < 0.6
    view = fleet(2)
    view.adapters.note("r0", ["a"])
    for _ in range(60):
        view.send(0, Ask("flood", "b", 100))
    view.send(1, Ask("steady", "c", 100))
    assert route(Ask("flood", "a", 100), view, random.Random(0)) == 1
    assert route(Ask("steady", "a", 100), view, random.Random(0)) == 0


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 5000))
def test_a_wait_grows_with_the_load(running: int, others: int, tokens: int) -> None:
    """One more request of anybody never makes the expected wait of a project shorter."""
    load = ReplicaLoad("r", slots=8, running=running + others, prompt_tokens=tokens)
    load.projects = {"p": running} | ({"q": others} if others else {})
    before = expected_wait_s(load, "p", COSTS)
    load.running += 1
    load.projects["p"] += 1
    assert expected_wait_s(load, "p", COSTS) >= before
    load.running += 1
    load.projects["q"] = others + 1
    assert expected_wait_s(load, "p", COSTS) >= before


def test_requests_without_affinity_are_spread() -> None:
    """The better of two at random keeps 32 replicas within a few requests of each other."""
    view, rng = fleet(32), random.Random(0)
    for _ in range(3200):
        index = route(Ask("p"), view, rng)
        assert index is not None
        view.send(index, Ask("p"))
    running = [r.running for r in view.replicas]
    assert statistics.mean(running) == 100
    assert max(running) - min(running) <= 8


@given(st.lists(asks(), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_places_are_given_back(sent: list[Ask], order: random.Random) -> None:
    """When every request has ended, in any order, with or without a first token, nothing is left of the load."""
    view = fleet(2)
    places = [view.send(i % 2, ask) for i, ask in enumerate(sent)]
    order.shuffle(places)
    for i, place in enumerate(places):
        if i % 3:
            place.answered()
        place.leave()
    for load in view.replicas:
        assert (load.running, load.prompt_tokens, load.projects) == (0, 0, {})
    assert not view.flying


def test_a_replica_that_goes_is_forgotten() -> None:
    """With what it held; those that stay keep theirs."""
    view = fleet(3)
    view.send(0, Ask("p", "a", 100, CHAINS[0]))
    place = view.send(2, Ask("p", "a", 100, CHAINS[0]))
    view.remove("r0")
    assert view.adapters.holders("a") == ("r2",)
    assert view.prefixes.depths(CHAINS[0]) == {"r2": 8}
    assert route(Ask("p", "a"), view, random.Random(0)) == view.index["r2"] == 1
    place.leave()


# -- what replicas hold


notes = st.tuples(st.sampled_from(["r0", "r1", "r2"]), st.sampled_from(CHAINS), st.integers(1, 8))


@given(st.lists(notes, max_size=30), st.integers(1, 20), st.sampled_from(CHAINS))
def test_depths_are_what_a_walk_finds(
    noted: list[tuple[str, list[bytes], int]], most: int, chain: list[bytes]
) -> None:
    """The binary searches agree with looking at every block of the chain in turn."""
    holdings: Holdings[bytes] = Holdings(most)
    for replica, of, depth in noted:
        holdings.note(replica, reversed(of[:depth]))
    walked = {}
    for replica in ("r0", "r1", "r2"):
        depth = 0
        while depth < len(chain) and holdings.holds(replica, chain[depth]):
            depth += 1
        if depth:
            walked[replica] = depth
    assert holdings.depths(chain) == walked


changes = st.tuples(
    st.sampled_from(["note", "drop", "replace", "forget"]),
    st.sampled_from(["r0", "r1", "r2"]),
    st.lists(st.sampled_from(ADAPTERS), max_size=4),
)


@given(st.lists(changes, max_size=30), st.integers(1, 4))
def test_holders_mirror_what_is_held(done: list[tuple[str, str, list[str]]], most: int) -> None:
    """Whatever happens, both directions say the same, and nobody holds more than `most`."""
    holdings: Holdings[str] = Holdings(most)
    for what, replica, things in done:
        if what == "drop":
            for thing in things:
                holdings.drop(replica, thing)
        elif what == "forget":
            holdings.forget(replica)
        else:
            getattr(holdings, what)(replica, things)
        if what == "replace":
            assert set(holdings.held(replica)) <= set(things)
    for replica in ("r0", "r1", "r2"):
        held = holdings.held(replica)
        assert len(held) == len(set(held)) <= most
        assert held == [thing for thing in held if replica in holdings.holders(thing)]
    for thing in ADAPTERS:
        assert all(holdings.holds(replica, thing) for replica in holdings.holders(thing))


def test_the_longest_unused_is_forgotten_first() -> None:
    """Using a thing again keeps it."""
    holdings: Holdings[str] = Holdings(2)
    for thing in ("a", "b", "a", "c"):
        holdings.note("r", [thing])
    assert holdings.held("r") == ["a", "c"]


# -- prefixes


@given(st.lists(st.integers(0, 1 << 20), max_size=100), st.lists(st.integers(0, 1 << 20), max_size=100))
def test_prompts_share_a_chain_as_far_as_their_tokens_agree(left: list[int], right: list[int]) -> None:
    """In full blocks; another salt shares nothing."""
    size = 8
    one, two = (prefix_chain(tokens, b"salt", block_tokens=size) for tokens in (left, right))
    assert len(one) == len(left) // size
    for k, (a, b) in enumerate(zip(one, two, strict=False)):
        assert (a == b) == (left[: (k + 1) * size] == right[: (k + 1) * size])
    assert not set(one) & set(prefix_chain(left, b"other", block_tokens=size))
    assert prefix_chain(left, b"salt", block_tokens=size, most=2) == one[:2]


def test_costs_come_from_a_profile() -> None:
    """A token of a prompt costs its row and its share of the step; a slot frees at the rate at which requests end."""
    profile = Profile(
        name="x", fixed_s=0.01, prompt_row_s=1e-4, decode_row_s=1e-3, max_num_seqs=10, max_batch_tokens=100,
        adapter_load_s=0.3,
    )  # fmt: skip
    costs = Costs.of(profile, output_tokens=50)
    assert costs == Costs(prompt_token_s=2e-4, running_s=1e-3, slot_s=0.1, adapter_s=0.3, block_tokens=64)
