"""Planning again: what stays, what is replaced and why, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from stoa.errors import ConfigError
from stoa.planner.check import check
from stoa.planner.diff import Committed, Counted, Moved, Spent, diff, tell
from stoa.planner.plan import Plan, Pool, Rented, Route, cost_of
from stoa.planner.problem import (
    Api,
    Bucket,
    Fit,
    Group,
    MachineType,
    Offer,
    Period,
    Place,
    Problem,
    Purchase,
    Rules,
    Service,
)
from stoa.planner.program import NoPlan, sketch, solve
from stoa.planner.program.reroute import reroute
from stoa.planner.replan import keep, replan, words
from stoa.planner.verify import verify
from tests.planner.problems import draw

USD = {"on_demand": 1.0, "reserved": 0.6, "spot": 0.3}
HOURS = ("08:00-09:00", "09:00-10:00", "10:00-11:00")


def problem(rate: float = 10.0, *, large: float = 0.1, api: bool = False, **usd: float) -> Problem:
    """A card of 10 small requests a second at two places; three hours of a day, two buckets."""
    prices = USD | usd
    offers = tuple(
        Offer(place, "L4", purchase, prices[purchase])
        for place in ("here", "there")
        for purchase in ("on_demand", "reserved", "spot")
        if purchase in prices and (purchase != "spot" or place == "there")
    )
    return check(
        Problem(
            tuple(Period(name, 1.0, 30.0) for name in HOURS),
            (Place("here"), Place("there")),
            (MachineType("L4", "L4", 1, 24.0),),
            offers,
            (Fit("L4", "m", (0.1, 1.0), (0.2, 0.2)),),
            (Service("chat", ("m",), 1.0),),
            (Group("all", frozenset({"here", "there"})), Group("home", frozenset({"here"}))),
            (
                Bucket("chat", "all", 100.0, 10.0, (rate, 2 * rate, rate)),
                Bucket("chat", "home", 1000.0, 100.0, (large,) * 3),
            ),
            (Api("hosted", "there", "m", 1e-4, 1e-4, 0.1, 0.01),) if api else (),
        )
    )


def hand_made(p: Problem, *rented: tuple[str, Purchase, tuple[int, ...]], **reserved: int) -> Plan:
    """A plan with these machines, routed as cheaply as they allow."""
    machines = tuple(Rented(Pool(place, "L4", "m"), purchase, counts) for place, purchase, counts in rented)
    held = {(place, "L4"): count for place, count in reserved.items()}
    routes = reroute(machines, p)
    assert routes is not None
    return Plan(machines, held, routes, cost_of(p, machines, held, routes), -math.inf)


# -- the damper


def test_an_old_plan_stays_for_less_than_was_asked() -> None:
    """A plan that will do is kept if the new one saves less than the stated share, and replaced if it saves that much."""
    p = problem()
    old = hand_made(p, ("here", "on_demand", (3, 4, 3)), ("there", "spot", (1, 1, 1)))
    cheapest = solve(p).costs.total
    saving = 1 - cheapest / old.costs.total
    assert saving > 0.1
    stays = replan(old, p, least_saving=saving + 0.01)
    assert not stays.replaced
    assert stays.plan.rented == old.rented
    assert stays.plan.costs == old.costs
    assert stays.saving == pytest.approx(saving)
    assert "The old plan stays" in words(stays)
    goes = replan(old, p, least_saving=saving - 0.01)
    assert goes.replaced
    assert goes.plan.costs.total == pytest.approx(cheapest)
    assert "The new plan replaces the old one" in words(goes)


def test_nothing_is_replaced_for_nothing() -> None:
    """The cheapest plan stays even if no saving at all is asked for."""
    p = problem()
    found = replan(solve(p), p, least_saving=0.0)
    assert not found.replaced
    assert found.changes == ()
    assert "No plan could save more than 0.0 %" in words(found)


def test_a_plan_that_is_not_enough_is_replaced_whatever_it_saves() -> None:
    """More demand than the old machines serve: the new plan, although it is dearer; and the broken rule is told."""
    old = solve(problem())
    more = problem(40.0)
    found = replan(old, more, least_saving=0.9)
    assert found.replaced
    assert found.plan.costs.total > old.costs.total
    assert found.kept.broken
    assert found.kept.broken in words(found)
    verify(found.plan, more)


def test_new_prices_are_the_old_plan_s_too() -> None:
    """The old plan costs what its machines cost now, not what they did."""
    p = problem()
    old = solve(p)
    dearer = problem(spot=0.5)
    kept = keep(old, dearer)
    assert not kept.broken
    assert kept.plan.costs.machines["spot"] == pytest.approx(old.costs.machines["spot"] * 0.5 / 0.3)


def test_routes_may_change_where_machines_need_not() -> None:
    """Machines that are enough if requests are sent elsewhere are kept, and the routes are new."""
    p = problem()
    old = hand_made(p, ("here", "on_demand", (2, 2, 2)), ("there", "on_demand", (1, 1, 1)))
    lean = tuple(replace(r, shares=(0.5,) * 3) if r.bucket == 0 else r for r in old.routes)
    halves = replace(
        old,
        routes=(
            *(r for r in lean if r.bucket == 1),
            *(Route("as forecast", 0, Pool(place, "L4", "m"), (0.5,) * 3) for place in ("here", "there")),
        ),
    )
    verify(halves, p)
    more = problem(11.0)
    kept = keep(halves, more)
    assert kept.rerouted
    assert kept.plan.rented == old.rented
    verify(kept.plan, more)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rules", [Rules(), Rules(survive_spot=True), Rules(survive_place=True, strain=1.5)])
def test_machines_of_a_plan_can_always_be_routed_again(seed: int, rules: Rules) -> None:
    """For its own machines a plan's own routes are found again or cheaper ones, in every world."""
    p = draw(seed, places=2, cards=4, models=2, periods=3, buckets=8, rate=10.0, api=True, rules=rules)
    p = replace(p, services=tuple(replace(s, survives=s.name == "class-1") for s in p.services))
    try:
        plan = sketch(p)
    except NoPlan:
        pytest.skip("no plan keeps these rules")
    routes = reroute(plan.rented, p)
    assert routes is not None
    costs = cost_of(p, plan.rented, plan.reserved, routes)
    verify(replace(plan, routes=routes, costs=costs), p)
    assert costs.total <= plan.costs.total * (1 + 1e-9)


def test_a_plan_of_apis_alone_can_be_routed_again() -> None:
    """Without any machine everything goes to a hosted model, or nowhere."""
    p = problem(0.001, large=0.0, api=True)
    routes = reroute((), p)
    assert routes is not None
    assert {r.target for r in routes} == {"hosted"}
    assert reroute((), problem()) is None


# -- commitments


def test_reserved_machines_that_run_are_paid_on() -> None:
    """Less demand does not end a commitment: the new plan holds it, and uses it before it rents others."""
    p = problem()
    old = hand_made(p, ("here", "reserved", (3, 3, 3)), here=3)
    less = problem(1.0)
    found = replan(old, less, least_saving=0.0)
    assert found.new is not None
    assert found.new.reserved["here", "L4"] == 3
    assert not any(r.purchase == "on_demand" for r in found.new.rented)
    ended = replan(old, less, least_saving=0.0, running={})
    assert ended.replaced
    assert ended.plan.reserved.get(("here", "L4"), 0) < 3


def test_a_commitment_that_nobody_offers_is_refused() -> None:
    """Without a price for what must be paid on there is no plan; the message says what is missing."""
    old = hand_made(problem(), ("here", "reserved", (3, 3, 3)), here=3)
    p = problem()
    without = replace(p, offers=tuple(o for o in p.offers if o.purchase != "reserved"))
    with pytest.raises(ConfigError, match="3 reserved L4 at here are running, and the inputs offer none"):
        replan(old, without, least_saving=0.1)
    few = replace(p, offers=tuple(replace(o, limit=2) if o.purchase == "reserved" else o for o in p.offers))
    with pytest.raises(ConfigError, match="at most 2"):
        replan(old, few, least_saving=0.1)
    assert "no longer offered (reserved)" in keep(old, without).broken


# -- what does not fit


def test_machines_and_apis_that_are_gone_break_a_plan() -> None:
    """A plan that needs what is no longer there is replaced, and that is the reason given."""
    p = problem(0.001, large=0.0, api=True)
    old = solve(p)
    found = replan(old, problem(), least_saving=0.5)
    assert found.replaced
    assert found.kept.broken == "the API hosted is no longer there"
    machines = solve(problem())
    nowhere = replace(problem(), offers=tuple(o for o in problem().offers if o.purchase == "on_demand"))
    assert "is no longer offered" in replan(machines, nowhere, least_saving=0.5, running={}).kept.broken


def test_a_plan_for_other_periods_is_refused() -> None:
    """Counts of three periods say nothing about two."""
    p = problem()
    fewer = replace(
        p,
        periods=p.periods[:2],
        buckets=tuple(replace(b, rates=b.rates[:2]) for b in p.buckets),
    )
    with pytest.raises(ConfigError, match="not in the order of the new inputs' 2 periods and 2 buckets"):
        replan(solve(p), fewer, least_saving=0.1)


@pytest.mark.parametrize("least", [-0.1, 1.0, math.nan])
def test_a_saving_that_cannot_be_is_refused(least: float) -> None:
    """Shares from 0 to below 1 are accepted."""
    with pytest.raises(ConfigError, match="accepted: a share from 0 to below 1"):
        replan(solve(problem()), problem(), least_saving=least)


# -- what differs


def test_what_differs_is_told_in_words() -> None:
    """Machines by stretches of hours, commitments, moved requests and cost, each with before and after."""
    p = problem()
    old = hand_made(p, ("here", "on_demand", (3, 3, 3)))
    new = hand_made(p, ("here", "on_demand", (1, 2, 2)), ("there", "reserved", (1, 1, 1)), there=1)
    machines, reserved_ones, held, moved, cost = diff(old, new, p)
    assert machines == Counted(Pool("here", "L4", "m"), "on_demand", HOURS, (3, 3, 3), (1, 2, 2))
    assert isinstance(reserved_ones, Counted)
    assert held == Committed("there", "L4", 0, 1)
    assert isinstance(moved, Moved)
    assert 0 < moved.share <= 1
    assert isinstance(cost, Spent)
    assert (cost.before, cost.after) == (old.costs.total, new.costs.total)
    lines = tell((machines, reserved_ones, held, cost)).splitlines()
    assert lines == [
        "m on L4 at here (on-demand): 08:00-09:00: 3 -> 1; 09:00-11:00: 3 -> 2",
        "m on L4 at there (reserved): always: 0 -> 1",
        "reserved for the whole time, L4 at there: 0 -> 1",
        "cost: 270.00 USD -> 204.00 USD (-24.4 %)",
        "    on-demand machines: 270.00 USD -> 150.00 USD",
        "    reserved machines: 0.00 USD -> 54.00 USD",
    ]
    assert tell(diff(old, old, p)) == "nothing changes"


def test_moved_requests_are_counted_once() -> None:
    """A quarter of a service's requests that go to another place are a quarter, and targets say from where to where."""
    p = problem(large=0.0)
    there, here = Pool("there", "L4", "m"), Pool("here", "L4", "m")
    machines = (Rented(here, "on_demand", (3, 3, 3)), Rented(there, "on_demand", (3, 3, 3)))

    def plan(share: float) -> Plan:
        routes = (
            Route("as forecast", 0, here, (share,) * 3),
            Route("as forecast", 0, there, (1 - share,) * 3),
        )
        return Plan(machines, {}, routes, cost_of(p, machines, {}, routes), 0.0)

    (moved,) = diff(plan(0.75), plan(0.5), p)
    assert isinstance(moved, Moved)
    assert moved.share == pytest.approx(0.25)
    assert [name for name, _, _ in moved.targets] == [here.name, there.name]
    assert tell([moved]).splitlines() == [
        "chat: 25 % of its requests are served elsewhere",
        "    m on L4 at here: 75 % -> 50 %",
        "    m on L4 at there: 25 % -> 50 %",
    ]


def test_machines_are_told_by_stretches_that_change_alike() -> None:
    """Hours of different days apart; one change of all periods is told once, and what stays not at all."""
    week = tuple(
        f"{kind} {hours}" for kind in ("weekday", "weekend") for hours in ("00:00-12:00", "12:00-24:00")
    )

    def steps(before: tuple[int, ...], after: tuple[int, ...]) -> str:
        (line,) = tell([Counted(Pool("here", "L4", "m"), "spot", week, before, after)]).splitlines()
        return line.removeprefix("m on L4 at here (spot): ")

    assert steps((1, 2, 2, 3), (1, 3, 3, 3)) == "weekday 12:00-24:00, weekend 00:00-12:00: 2 -> 3"
    assert steps((1, 1, 0, 0), (0, 0, 1, 1)) == "weekday 00:00-24:00: 1 -> 0; weekend 00:00-24:00: 0 -> 1"
    assert steps((1, 1, 1, 1), (2, 2, 2, 2)) == "always: 1 -> 2"
