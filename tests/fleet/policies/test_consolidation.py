"""What goes first, and which adapters belong where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.policies.consolidation import advise, first_to_go, give_back
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


def test_ready_replicas_go_only_as_far_as_they_are_spare() -> None:
    """Of those that may go all that start do, and ready ones in their order while any is spare."""
    order = [
        ReplicaSeen("first", DEAR, "ready", 0.0),
        ReplicaSeen("second", SPOT, "ready", 0.0),
        ReplicaSeen("new", SPOT, "starting", 5.0),
    ]
    assert give_back(order, 1) == ["first", "new"]
    assert give_back(order, -1) == ["new"]


FOUR = dict.fromkeys(("r0", "r1", "r2", "r3"), 100)


def held(**by_replica: str) -> Callable[[str], list[str]]:
    """Who holds an adapter; `held(r0="x y")`: r0 holds x and y."""
    return lambda adapter: [r for r, adapters in by_replica.items() if adapter in adapters.split()]


def test_hot_adapters_get_copies_and_cold_ones_one() -> None:
    """An adapter with half of all requests is held by half of the replicas, each cold one by one."""
    rates = {"hot": 50.0, **{f"cold-{k}": 1.0 for k in range(50)}}
    copies = Counter(name for names in advise(rates, 100.0, held(), FOUR).values() for name in names)
    assert copies == {"hot": 2, **{f"cold-{k}": 1 for k in range(50)}}


def test_requests_without_adapter_count_as_well() -> None:
    """Who asks for the only adapter is one in ten: it gets one copy."""
    assert advise({"x": 1.0}, 10.0, held(r2="x"), FOUR) == {}
    assert len(advise({"x": 1.0}, 1.0, held(r2="x"), FOUR)) == 3


def test_copies_are_worth_so_many_requests_each() -> None:
    """An adapter that has all requests, but few of them, is not read everywhere; a cold one not ahead of need."""
    assert len(advise({"x": 2.5}, 2.5, held(), FOUR, least=1.0)) == 2
    assert advise({"x": 0.5}, 0.5, held(), FOUR, least=1.0) == {}


def test_adapters_stay_where_they_are() -> None:
    """Where each adapter is held often enough, nothing is advised; elsewhere it does not count."""
    rates, room = {"x": 1.0, "y": 1.0}, {"r0": 4, "r1": 4}
    assert advise(rates, 2.0, held(r0="x", r1="y"), room) == {}
    assert advise(rates, 2.0, held(r0="x", r9="y"), room) == {"r1": ["y"]}


def test_copies_go_where_there_is_least_to_carry() -> None:
    """A hot adapter's second copy comes to the replica whose adapters are asked for least."""
    rates = {"hot": 50.0, "warm": 30.0, "mild": 15.0, "cold": 5.0}
    where = held(r0="hot", r1="warm", r2="mild", r3="cold")
    assert advise(rates, 100.0, where, FOUR) == {"r3": ["hot"], "r2": ["warm"]}


def test_only_hot_adapters_displace_others() -> None:
    """Full replicas are told of one that gets several copies, not of one that gets its only one."""
    full = dict.fromkeys(FOUR, 0)
    advice = advise({"hot": 9.0, "cold": 1.0}, 10.0, held(r0="hot"), full)
    assert advice == {"r1": ["hot"], "r2": ["hot"], "r3": ["hot"]}


def test_nothing_is_advised_to_nobody() -> None:
    """Without replicas or without requests there is nothing to read."""
    assert advise({"x": 1.0}, 1.0, held(), {}) == {}
    assert advise({}, 0.0, held(r="x"), {"r": 4}) == {}
    assert advise({"x": 0.0}, 0.0, held(), {"r": 4}) == {}


NAMES = st.sampled_from([f"a{k}" for k in range(12)])


@given(
    st.dictionaries(NAMES, st.floats(0, 100)),
    st.lists(st.frozensets(NAMES), min_size=1, max_size=5),
    st.floats(0, 10),
    st.integers(0, 6),
)
def test_advice_is_consistent_and_settles(
    rates: dict[str, float], begin: list[frozenset[str]], least: float, slots: int
) -> None:
    """Nobody is told to read what it holds, nor a cold adapter; who has followed is told nothing more; and with room every
    adapter that is worth it has a home."""
    holds = {f"r{k}": set(some) for k, some in enumerate(begin)}

    def holders(adapter: str) -> list[str]:
        return [r for r, some in holds.items() if adapter in some]

    def told() -> dict[str, list[str]]:
        room = {r: max(0, slots - len(some)) for r, some in holds.items()}
        return advise(rates, sum(rates.values()), holders, room, least=least)

    for replica, adapters in told().items():
        assert len(set(adapters)) == len(adapters)
        assert not set(adapters) & holds[replica]
        assert all(rates[a] >= least for a in adapters)
        holds[replica] |= set(adapters)
    assert told() == {}
    if slots * len(holds) >= len(rates) + sum(map(len, holds.values())):
        assert all(holders(a) for a, rate in rates.items() if rate > 0 and rate >= least)
