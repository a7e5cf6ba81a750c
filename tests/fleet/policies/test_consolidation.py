"""What goes first, and which adapters belong where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.policies.consolidation import advise, first_to_go
from stoa.fleet.policies.facts import Offer, ReplicaSeen

SPOT = Offer("a", "spot", 0.3, 120.0)
DEAR = Offer("a", "on_demand", 1.0, 120.0)


def test_starting_then_dear_then_idle_replicas_go_first() -> None:
    """Those that do not serve yet go before those that do, dear before cheap, and the least busy before the busiest."""
    replicas = [
        ReplicaSeen("busy", SPOT, "ready", 0.0, running=9),
        ReplicaSeen("idle", SPOT, "ready", 0.0, running=1),
        ReplicaSeen("dear", DEAR, "ready", 0.0, running=9),
        ReplicaSeen("new", SPOT, "starting", 5.0),
    ]
    assert [r.id for r in first_to_go(replicas)] == ["new", "dear", "idle", "busy"]


def test_hot_adapters_get_copies_and_cold_ones_one() -> None:
    """An adapter with half of all requests is held by half of the replicas, each cold one by one."""
    rates = {"hot": 50.0, **{f"cold-{k}": 1.0 for k in range(50)}}
    advice = {a.replica: a for a in advise(rates, {}, ["r0", "r1", "r2", "r3"], 100)}
    copies = [name for a in advice.values() for name in a.warm]
    assert copies.count("hot") == 2
    assert all(copies.count(f"cold-{k}") == 1 for k in range(50))


def test_adapters_stay_where_they_are() -> None:
    """Where each adapter is held often enough, nothing is advised."""
    rates = {"x": 1.0, "y": 1.0}
    assert advise(rates, {"r0": {"x"}, "r1": {"y"}}, ["r0", "r1"], 4) == []


def test_a_full_replica_forgets_what_is_cold_or_held_elsewhere() -> None:
    """Beyond its slots a replica forgets the coldest first, and keeps what only it holds and somebody asks for."""
    advice = advise({"x": 5.0, "y": 5.0}, {"r0": {"x", "old"}, "r1": {"y", "x"}}, ["r0", "r1"], 1)
    assert {a.replica: a.forget for a in advice} == {"r0": ("old",), "r1": ("x",)}


def test_nothing_is_advised_to_nobody() -> None:
    """Without replicas, without slots or without requests there is nothing to warm."""
    assert advise({"x": 1.0}, {}, [], 4) == []
    assert advise({"x": 1.0}, {}, ["r"], 0) == []
    assert advise({}, {"r": {"x"}}, ["r"], 4) == []


NAMES = st.sampled_from([f"a{k}" for k in range(12)])


@given(
    st.dictionaries(NAMES, st.floats(0, 100)),
    st.lists(st.frozensets(NAMES), min_size=1, max_size=5),
    st.integers(1, 6),
)
def test_advice_is_consistent_and_settles(
    rates: dict[str, float], held: list[frozenset[str]], slots: int
) -> None:
    """No replica is told to warm what it holds or to forget what it lacks; whoever follows ends within its slots; and every
    adapter asked for has a home while there is room."""
    replicas = [f"r{k}" for k in range(len(held))]
    holders = dict(zip(replicas, held, strict=True))
    advice = {a.replica: a for a in advise(rates, holders, replicas, slots)}
    after: dict[str, set[str]] = {}
    for r in replicas:
        warm, forget = (set(advice[r].warm), set(advice[r].forget)) if r in advice else (set(), set())
        assert not warm & holders[r]
        assert forget <= holders[r]
        after[r] = (set(holders[r]) | warm) - forget
        assert len(after[r]) <= max(slots, len(holders[r] | warm) - len(forget))
        assert len(after[r]) <= slots
    asked = [a for a, rate in rates.items() if rate > 0]
    if len(asked) <= slots:
        assert all(any(a in kept for kept in after.values()) for a in asked)
