"""The cheapest plan, against brute force on tiny cases, against arithmetic on large ones, and against itself."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from stoa.planner.plan import Plan
from stoa.planner.problem import Api, Problem, Rules, Scenario
from stoa.planner.program import NoPlan, Unservable, sketch, solve
from stoa.planner.program.joint import commitments, prices
from stoa.planner.program.losses import Losses
from stoa.planner.program.period import add_period, all_routes
from stoa.planner.program.view import view
from stoa.planner.program.whole import Effort, given, most_machines, share_reserved
from stoa.planner.verify import BrokenPlan, verify
from stoa.programs import Program
from tests.planner.problems import draw


def tiny(seed: int, **rules: object) -> Problem:
    """Two places, two cards, two periods, three buckets of one model; few machines are enough."""
    return draw(
        seed,
        places=2,
        cards=2,
        models=1,
        periods=2,
        buckets=3,
        rate=3.0,
        purchases=3,
        rules=Rules(**rules),  # type: ignore[arg-type]
    )


def cheapest_by_hand(problem: Problem, most: int) -> float:
    """Every combination of machines of each offer up to `most`, feasible by a linear program of one period written here."""
    offers = problem.offers
    total = np.inf
    commits = [o for o in offers if o.purchase == "reserved"]
    for committed in itertools.product(range(most + 1), repeat=len(commits)):
        cost = sum(n * o.hourly_usd * problem.horizon_h for n, o in zip(committed, commits, strict=True))
        for t, period in enumerate(problem.periods):
            best = np.inf
            ranges = [
                range(committed[commits.index(o)] + 1)
                if o.purchase == "reserved"
                else range(min(most, most if o.limit is None else o.limit) + 1)
                for o in offers
            ]
            for counts in itertools.product(*ranges):
                price = sum(
                    n * o.hourly_usd * o.availability * period.hours * period.times
                    for n, o in zip(counts, offers, strict=True)
                    if o.purchase != "reserved"
                )
                if price < best and _enough(problem, t, counts):
                    best = price
            cost += best
        total = min(total, cost)
    return float(total)


def _enough(problem: Problem, t: int, counts: tuple[int, ...]) -> bool:
    """Can these machines serve the period? Decided by a linear program over shares, one column for each bucket and offer."""
    program = Program()
    fits = {f.machine: f for f in problem.fits}
    shares = {}
    groups = {g.name: g.places for g in problem.groups}
    services = {s.name: s for s in problem.services}
    for k, b in enumerate(problem.buckets):
        for i, o in enumerate(problem.offers):
            fit = fits.get(o.machine)
            able = fit is not None and counts[i] and o.place in groups[b.group]
            if (
                able
                and fit is not None
                and fit.load_s[k] < np.inf
                and fit.ttft_s[k] <= services[b.service].ttft_s
            ):
                shares[k, i] = program.variables((1,), cost=0.0)
        row = program.row((1,), low=1.0, high=1.0)
        mine = [v[0] for (kk, _), v in shares.items() if kk == k]
        if not mine:
            return False
        program.add((np.array(mine), 1.0), into=np.full(len(mine), row[0]))
    for i, o in enumerate(problem.offers):
        row = program.row((1,), high=counts[i] * o.availability)
        for (k, ii), v in shares.items():
            if ii == i:
                program.add((v, problem.buckets[k].rates[t] * fits[o.machine].load_s[k]), into=row)
    return program.again().solve() is not None


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_no_combination_of_machines_is_cheaper(seed: int) -> None:
    """On tiny problems the plan costs what the cheapest of all combinations costs."""
    whole = tiny(seed)
    problem = replace(whole, offers=tuple(o for o in whole.offers if o.place == "place-0")[:4])
    plan = solve(problem, gap=0.0)
    assert plan.costs.total == pytest.approx(cheapest_by_hand(problem, 3), rel=1e-6)
    assert plan.bound_usd == pytest.approx(plan.costs.total, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"survive_place": True, "strain": 1.5},
        {"survive_spot": True},
        {"ramp": 2},
        {"margin": (1.5, 1.2)},
        {"carbon_kg": 1e9},
    ],
    ids=lambda rules: "+".join(rules) or "plain",
)
def test_plans_keep_every_rule(seed: int, rules: dict[str, object]) -> None:
    """Both the quick and the proved plan pass the arithmetic check, and neither undercuts the bound."""
    problem = draw(
        seed,
        places=2,
        cards=4,
        models=2,
        periods=2,
        buckets=8,
        rate=10.0,
        api=True,
        rules=Rules(**rules),  # type: ignore[arg-type]
    )
    problem = replace(
        problem, services=tuple(replace(s, survives=s.name == "class-1") for s in problem.services)
    )
    try:
        proved = solve(problem, time_limit_s=20.0)
    except NoPlan:
        pytest.skip("no plan keeps these rules")
    quick = sketch(problem)
    verify(quick, problem)
    verify(proved, problem)
    assert proved.costs.total <= quick.costs.total * (1 + 1e-3)
    assert proved.bound_usd <= proved.costs.total * (1 + 1e-9)
    assert quick.costs.total >= proved.bound_usd * (1 - 1e-9)


def test_a_bound_by_parts_holds_for_the_whole() -> None:
    """The bound from periods by themselves is below the cost of the program of all periods at once, solved to the end."""
    problem = draw(3, places=1, cards=3, models=1, periods=3, buckets=4, rate=6.0)
    parts = solve(problem, gap=1e-4, time_limit_s=20.0)
    whole = solve(replace(problem, rules=Rules(carbon_kg=1e12)), gap=0.0, time_limit_s=60.0)
    assert parts.bound_usd <= whole.costs.total * (1 + 1e-6)
    assert parts.costs.total >= whole.costs.total * (1 - 1e-6)


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_losses_cut_off_what_the_whole_program_forbids(seed: int) -> None:
    """Machines of one period cost the same with losses as cuts, and with the losses' own routes in the program."""
    rules = Rules(survive_place=True, survive_spot=True, strain=1.4)
    v = view(draw(seed, places=3, cards=5, models=2, periods=1, buckets=8, rate=20.0, api=True, rules=rules))
    routes, c = [all_routes(v, 0)], commitments(v)
    reserved = np.full(len(c.offers), 2.0)
    (cut,) = given(v, routes, [Losses(v, 0, routes[0])], c, reserved, Effort(0.0, 60.0, 1))
    program = Program()
    rows = add_period(program, v, 0, routes[0], price=prices(v, 0), most=most_machines(v, c, reserved))
    share_reserved(program, c, rows.n, reserved)
    assert cut.cost == pytest.approx(program.solve(integer=rows.n).cost, rel=1e-6)
    assert cut.bound == pytest.approx(cut.cost, rel=1e-6)


def test_what_cannot_be_served_is_named() -> None:
    """Demand that no machine serves in time is refused with the bucket and the best there would be."""
    problem = tiny(1)
    services = tuple(replace(s, ttft_s=1e-4) for s in problem.services)
    with pytest.raises(
        Unservable,
        match=r"nothing serves class-0, .* tokens in time .* the best is 8b on .* s to the first token",
    ):
        solve(replace(problem, services=services))


def test_too_few_machines_make_no_plan() -> None:
    """If machines are limited and nothing else is there, that is said, and no plan is given."""
    problem = tiny(1)
    offers = tuple(replace(o, limit=0 if o.place == "place-1" else 1) for o in problem.offers)
    demand = tuple(replace(b, rates=tuple(100 * r for r in b.rates)) for b in problem.buckets)
    with pytest.raises(NoPlan):
        solve(replace(problem, offers=offers, buckets=demand))


def test_an_api_takes_what_machines_are_too_dear_for() -> None:
    """A trickle of requests goes to a hosted model; a flood of them is worth machines."""
    problem = draw(5, places=2, cards=2, models=1, periods=1, buckets=3, rate=0.001, purchases=1)
    api = Api("hosted", "place-0", "8b", 1e-7, 1e-7, 0.2, 0.01)
    little = solve(replace(problem, apis=(api,)))
    assert not little.rented
    assert little.costs.api > 0
    many = tuple(replace(b, rates=tuple(1e5 * r for r in b.rates)) for b in problem.buckets)
    assert solve(replace(problem, apis=(api,), buckets=many)).rented


def test_hosted_models_alone_are_a_plan() -> None:
    """Where there is no machine at all, and where none is of use."""
    problem = draw(5, places=2, cards=2, models=1, periods=2, buckets=3, rate=1.0, purchases=1)
    api = Api("hosted", "place-0", "8b", 1e-7, 1e-7, 0.2, 0.01)
    for offers in ((), tuple(replace(o, hourly_usd=1e5) for o in problem.offers)):
        plan = solve(replace(problem, apis=(api,), offers=offers))
        assert not plan.rented
        assert plan.costs.api > 0


def test_scenarios_are_all_served_and_paid_by_likelihood() -> None:
    """Machines are enough for the worst scenario; hosted models are paid for by how likely each is."""
    problem = draw(6, places=1, cards=2, models=1, periods=1, buckets=2, rate=2.0, purchases=1)
    worst = (Scenario("usual", 0.9, (1.0,)), Scenario("worst", 0.1, (3.0,)))
    plan = solve(replace(problem, scenarios=worst))
    tripled = tuple(replace(b, rates=tuple(3 * r for r in b.rates)) for b in problem.buckets)
    assert plan.costs.total == pytest.approx(solve(replace(problem, buckets=tripled)).costs.total)
    assert plan.costs.total > solve(problem).costs.total


def test_a_plan_that_was_tampered_with_is_found_out() -> None:
    """One machine or one share less, and the arithmetic check names what is missing."""
    problem = tiny(2)
    plan = solve(problem)
    fewer = replace(plan.rented[0], counts=tuple(max(0, n - 1) for n in plan.rented[0].counts))
    with pytest.raises(BrokenPlan):
        verify(replace(plan, rented=(fewer, *plan.rented[1:])), problem)
    less = replace(plan.routes[0], shares=tuple(0.5 * s for s in plan.routes[0].shares))
    with pytest.raises(BrokenPlan, match="is served"):
        verify(replace(plan, routes=(less, *plan.routes[1:])), problem)


def test_the_same_problem_gives_the_same_plan() -> None:
    """Nothing is drawn by chance."""
    problem = tiny(3)
    first, second = solve(problem), solve(problem)
    assert _without_time(first) == _without_time(second)


def _without_time(plan: Plan) -> Plan:
    return replace(plan, solve_s=0.0)
