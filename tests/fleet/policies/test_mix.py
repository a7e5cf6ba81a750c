"""Where replicas are had: decisions on small fleets, and what holds on any."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.fleet.policies.facts import Bounds, Decision, Offer, OfferSeen, ReplicaSeen
from stoa.fleet.policies.mix import Need, Record, Records, Together, is_open, learn, place
from tests.fleet.policies.fleets import World, offer, replica, seen, steady

ZONES = ["a", "b", "c"]
SPOT = [offer(z) for z in ZONES]
DEAR = offer("a", "on_demand")
KNOWN = Records({o: Record(there_s=40 * 3600.0, told=(900.0, -1.0, -1.0)) for o in SPOT}, 990.0)


def counted(decision: Decision) -> dict[tuple[str, str], int]:
    return {(x.offer.zone, x.offer.market): x.count for x in decision.launch}


def spread(*counts: int) -> list[ReplicaSeen]:
    return [replica(f"{o.zone}{k}", o) for o, n in zip(SPOT, counts, strict=False) for k in range(n)]


def test_need_is_spread_over_zones_of_the_same_price() -> None:
    """Nothing is known of any zone: each gets its part, on spot."""
    decision = place(seen((), [*SPOT, DEAR]), Need(4, 6), KNOWN)
    assert counted(decision) == {("a", "spot"): 2, ("b", "spot"): 2, ("c", "spot"): 2}


def test_no_spare_where_a_lost_zone_leaves_enough() -> None:
    """Three zones of two, four needed at least: nothing beyond."""
    assert place(seen(spread(2, 2, 2), [*SPOT, DEAR]), Need(4, 6), KNOWN).launch == ()


def test_no_spare_where_losses_are_rare() -> None:
    """Two zones that have not lost anything in two days need no spare."""
    assert place(seen(spread(3, 3, 0), [*SPOT[:2], DEAR]), Need(5, 6), KNOWN).launch == ()


def test_spare_where_losses_are_frequent() -> None:
    """Zones that are lost every two hours are given what the bare load asks for when one is gone."""
    often = Records({o: Record(20 * 3600.0, losses=10.0, told=(900.0, -1.0, -1.0)) for o in SPOT}, 990.0)
    decision = place(seen(spread(3, 3, 0), [*SPOT[:2], DEAR]), Need(5, 6), often)
    assert counted(decision) == {("a", "spot"): 2, ("b", "spot"): 2}


def test_a_zone_that_takes_back_often_is_avoided() -> None:
    """At the same price the replicas go where they last."""
    often = Records({**KNOWN.by_offer, SPOT[0]: Record(20 * 3600.0, losses=20.0)}, 990.0)
    decision = place(seen((), [*SPOT, DEAR]), Need(4, 6), often)
    assert counted(decision).get(("a", "spot"), 0) <= 1


def test_a_cheaper_zone_gets_more() -> None:
    """Price counts beside risk."""
    offers = [offer("a", hourly=0.2), offer("b"), offer("c")]
    decision = counted(place(seen((), [*offers, DEAR]), Need(4, 9), Records()))
    assert decision[("a", "spot")] > max(decision.get(("b", "spot"), 0), decision.get(("c", "spot"), 0))


def test_spot_dearer_than_on_demand_is_left_alone() -> None:
    """What vanishes must be cheaper than what stays."""
    decision = place(seen((), [offer("a", hourly=1.1), DEAR]), Need(1, 2), Records())
    assert counted(decision) == {("a", "on_demand"): 2}


def test_on_demand_covers_what_refusing_zones_do_not() -> None:
    """All zones have just refused: need is met on demand."""
    refused = [OfferSeen(o, refused_s=995.0) for o in SPOT]
    known = learn(seen((), refused, now_s=995.0), Records())
    assert counted(place(seen((), [*refused, DEAR]), Need(1, 2), known)) == {("a", "on_demand"): 2}


def test_a_zone_without_news_is_tried_with_on_demand_beside_it() -> None:
    """A launch at a zone never tried may fail, so the same number starts on demand; it goes back once spot starts."""
    world = World([SPOT[0], DEAR])
    decision = place(
        world.look(steady(1), Bounds()), Need(1, 1), learn(world.look(steady(1), Bounds()), Records())
    )
    assert counted(decision) == {("a", "spot"): 1, ("a", "on_demand"): 1}
    world.carry_out(decision)
    world.now_s += 10.0
    later = world.look(steady(1), Bounds())
    decision = place(later, Need(1, 1), learn(later, Records()))
    assert [world.replicas[r].offer for r in decision.drain] == [DEAR]
    assert decision.launch == ()


def test_on_demand_goes_back_when_spot_is_ready() -> None:
    """A replica on demand stays while its successor starts, and goes when that is ready."""
    dear, starting = replica("d", DEAR, running=5), replica("s", SPOT[0], "starting")
    assert place(seen([dear, starting], [*SPOT, DEAR]), Need(1, 1), KNOWN).drain == ()
    assert place(seen([dear, replica("s", SPOT[0])], [*SPOT, DEAR]), Need(1, 1), KNOWN).drain == ("d",)


def test_zones_that_go_together_count_as_one() -> None:
    """Two zones that were lost in the same moment, again and again, are not each other's spare."""
    pair = {(x, y): Together(99.0, 0.0 if "c" in x + y else 99.0) for x in ZONES for y in ZONES if x != y}
    often = {o: Record(20 * 3600.0, losses=9.0, told=(900.0, -1.0, -1.0)) for o in SPOT}
    fleet = seen(spread(2, 2, 2), [*SPOT, DEAR])
    alone, together = Records(often, 990.0), Records(often, 990.0, frozenset(ZONES), pair)
    assert place(fleet, Need(4, 6), alone).launch == ()
    assert counted(place(fleet, Need(4, 6), together)) == {("c", "spot"): 2}


def test_an_announced_end_is_made_good_at_once() -> None:
    """A replica whose end is known counts as gone, and serves until its successor does or the end is near."""
    ending = replica("e", SPOT[0], ends_s=1100.0)
    fleet = [ending, *spread(0, 1, 1)]
    decision = place(seen(fleet, [*SPOT, DEAR]), Need(2, 3), KNOWN)
    assert sum(x.count for x in decision.launch) == 1
    assert decision.drain == ()
    assert place(seen([ending, *spread(0, 2, 1)], [*SPOT, DEAR]), Need(2, 3), KNOWN).drain == ("e",)
    assert "e" in place(seen(fleet, [*SPOT, DEAR], now_s=1090.0), Need(2, 3), KNOWN).drain


@pytest.mark.parametrize(
    ("refusals", "after_s", "asked"),
    [(1, 29, False), (1, 31, True), (3, 100, False), (3, 121, True), (9, 301, True)],
)
def test_a_zone_that_refused_is_left_alone_for_a_while(refusals: int, after_s: float, asked: bool) -> None:
    """A quarter of a startup time at first, twice as long after each refusal, five minutes at most."""
    assert is_open(OfferSeen(SPOT[0], refused_s=1000.0), Record(refusals=refusals), 1000.0 + after_s) is asked


def test_losses_and_time_there_are_learned() -> None:
    """A loss counts once however many replicas went, and time counts while something is there."""
    records = learn(seen(spread(2), [OfferSeen(SPOT[0])], now_s=0.0), Records())
    records = learn(seen(spread(2), [OfferSeen(SPOT[0])], now_s=3600.0), records)
    records = learn(seen((), [OfferSeen(SPOT[0], preempted_s=3605.0)], now_s=3610.0), records)
    records = learn(seen((), [OfferSeen(SPOT[0], preempted_s=3605.0)], now_s=3620.0), records)
    record = records.of(SPOT[0])
    assert record.losses == pytest.approx(1.0, rel=1e-3)
    assert record.there_s == pytest.approx(3600.0, rel=0.02)
    assert record.refusals == 1


OFFERS = [*SPOT, DEAR, offer("b", "on_demand", 1.2)]


@st.composite
def fleets(draw: st.DrawFn) -> list[ReplicaSeen]:
    states = st.sampled_from(["starting", "ready", "ready", "draining"])
    rows = draw(st.lists(st.tuples(st.sampled_from(OFFERS), states, st.integers(0, 9)), max_size=14))
    return [replica(f"r{k}", o, state, running) for k, (o, state, running) in enumerate(rows)]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[OfferSeen], Records]:
    times = st.sampled_from([-float("inf"), 100.0, 960.0, 990.0])
    offers = [OfferSeen(o, draw(times), draw(times), draw(times)) for o in OFFERS]
    losses = st.floats(0, 30)
    records = {
        o.offer: Record(draw(st.floats(0, 1e6)), draw(losses), draw(st.integers(0, 6)), (o.launched_s,) * 3)
        for o in offers
    }
    return offers, Records(records, 990.0)


@given(fleets(), histories(), st.integers(0, 12), st.integers(0, 12), st.integers(1, 20))
def test_any_decision_keeps_bounds_and_service(
    fleet: list[ReplicaSeen], history: tuple[list[OfferSeen], Records], bare: int, more: int, most: int
) -> None:
    """Never more than allowed, nothing from an offer that is left alone, nothing drained twice, and never fewer ready than
    needed if as many were."""
    offers, known = history
    need = Need(min(bare, most), min(bare + more, most))
    decision = place(seen(fleet, offers, bounds=Bounds(max_replicas=most)), need, known)
    lasting = [r for r in fleet if r.state != "draining"]
    launched = sum(x.count for x in decision.launch)
    assert launched == 0 or len(lasting) + launched <= most
    by_offer = {o.offer: o for o in offers}
    assert all(is_open(by_offer[x.offer], known.of(x.offer), 1000.0) for x in decision.launch)
    assert all(x.count > 0 for x in decision.launch)
    assert len(set(decision.drain)) == len(decision.drain)
    assert set(decision.drain) <= {r.id for r in lasting}
    ready = sum(r.state == "ready" for r in lasting)
    left = sum(r.state == "ready" and r.id not in decision.drain for r in lasting)
    assert left >= min(ready, need.full)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.sets(st.sampled_from(ZONES), max_size=3))
def test_carried_out_decisions_settle(full: int, spread_by: int, closed: set[str]) -> None:
    """With the same need, some minutes later need is ready and nothing more is launched but tries of zones that refuse."""
    world, known = World([*SPOT, DEAR], closed=closed), Records()
    need = Need(max(1, full - spread_by), full)
    for _ in range(120):
        look = world.look(steady(1), Bounds())
        known = learn(look, known)
        decision = place(look, need, known)
        before = Counter(r.offer for r in world.replicas.values())
        world.carry_out(decision)
        world.now_s += 10.0
    after: Counter[Offer] = Counter(r.offer for r in world.replicas.values())
    assert before == after
    assert sum(r.state == "ready" for r in world.replicas.values()) >= full
    assert (after[DEAR] == 0) == (len(closed) < 3 or not full)


@settings(deadline=None)
@given(st.integers(2, 12), st.sampled_from(ZONES))
def test_a_lost_zone_is_made_good_elsewhere(full: int, lost: str) -> None:
    """After a zone is gone, need is ready again within two startup times and a few looks."""
    world, known = World([*SPOT, DEAR]), Records()
    for tick in range(60):
        if tick == 30:
            world.lose(lost)
        look = world.look(steady(1), Bounds())
        known = learn(look, known)
        world.carry_out(place(look, Need(max(1, full // 2), full), known))
        world.now_s += 10.0
    assert sum(r.state == "ready" for r in world.replicas.values()) >= full
