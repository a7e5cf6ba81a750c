"""Each rule of a plan, broken on purpose: arithmetic that knows no solver must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stoa.errors import ConfigError
from stoa.planner.losses import Loss, losses
from stoa.planner.plan import Plan, Rented, Route, cost_of
from stoa.planner.problem import Fit, MachineType, Offer, Place, Problem, Rules
from stoa.planner.program import solve
from stoa.planner.verify import BrokenPlan, verify
from tests.planner.hybrid import BOX, CELLAR, CLOUD, HOME, IRELAND, MODEL, SMALL, plan, problem

Fault = Callable[[Problem, Plan], tuple[Problem, Plan]]


def limited(purchase: str, limit: int) -> Fault:
    """An offer of which there are fewer."""

    def fault(at: Problem, made: Plan) -> tuple[Problem, Plan]:
        offers = tuple(replace(o, limit=limit) if o.purchase == purchase else o for o in at.offers)
        return replace(at, offers=offers), made

    return fault


def ruled(**rules: Any) -> Fault:
    return lambda at, made: (replace(at, rules=replace(at.rules, **rules)), made)


def counted(purchase: str, *counts: int) -> Fault:
    """Other machines, honestly paid."""

    def fault(at: Problem, made: Plan) -> tuple[Problem, Plan]:
        rented = tuple(replace(r, counts=counts) if r.purchase == purchase else r for r in made.rented)
        return at, paid(at, replace(made, rented=rented))

    return fault


def sent(bucket: int, target: Any, *shares: float) -> Fault:
    """A bucket's requests, all of them, to one target as forecast."""

    def fault(at: Problem, made: Plan) -> tuple[Problem, Plan]:
        kept = tuple(r for r in made.routes if (r.world, r.bucket) != ("as forecast", bucket))
        return at, paid(at, replace(made, routes=(*kept, Route("as forecast", bucket, target, shares))))

    return fault


def paid(at: Problem, made: Plan) -> Plan:
    return replace(made, costs=cost_of(at, made.rented, made.reserved, made.routes))


def adapters(gib: float, room: float) -> Fault:
    """Adapters of the clinics, in the cellar's memory."""

    def fault(at: Problem, made: Plan) -> tuple[Problem, Plan]:
        buckets = tuple(replace(b, adapters_gib=gib) if b.group == "patients" else b for b in at.buckets)
        fits = tuple(replace(f, adapters_gib=room) if f.machine == BOX else f for f in at.fits)
        return replace(at, buckets=buckets, fits=fits), made

    return fault


def limited_api(**limits: float) -> Fault:
    return lambda at, made: (replace(at, apis=(replace(at.apis[0], **limits),)), made)


def hurried(at: Problem, made: Plan) -> tuple[Problem, Plan]:
    services = tuple(replace(s, tpot_s=0.01) for s in at.services)
    return replace(at, services=services), made


def overcommitted(at: Problem, made: Plan) -> tuple[Problem, Plan]:
    return limited("reserved", 3)(at, replace(made, reserved={(IRELAND, SMALL): 4}))


def unknown(at: Problem, made: Plan) -> tuple[Problem, Plan]:
    stranger = Rented(replace(HOME, model="stranger"), "owned", (1, 1))
    return at, replace(made, rented=(*made.rented, stranger))


def powered(at: Problem, made: Plan) -> tuple[Problem, Plan]:
    machines = tuple(replace(m, power_kw=0.5) for m in at.machines)
    places = tuple(replace(p, carbon_g_per_kwh=400.0) for p in at.places)
    return replace(at, machines=machines, places=places, rules=Rules(carbon_kg=100.0)), made


def test_the_plan_itself_keeps_every_rule() -> None:
    """Else what follows would prove nothing."""
    verify(plan(), problem())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (sent(0, HOME, 1.0, 0.9), "is served"),
        (counted("spot", 0, 0), "has work for"),
        (limited("spot", 2), "more than the 2 machines"),
        (counted("reserved", 0, 3), "more g6.xlarge than are reserved"),
        (overcommitted, "4 g6.xlarge are reserved at ireland, and 3 are offered"),
        (lambda at, made: (replace(at, committed={(IRELAND, SMALL): 3}), made), "committed to already"),
        (adapters(3.0, 1.0), "lacks memory for adapters"),
        (limited_api(requests_per_s=1.0), "too much for burst"),
        (limited_api(tokens_per_s=500.0), "too much for burst"),
        (limited_api(max_prompt_tokens=300.0), "is too long for burst"),
        (hurried, "is too slow"),
        (ruled(ramp=2), "changes faster than the ramp"),
        (ruled(budget_usd=10.0), "exceed the budget"),
        (powered, "kg of carbon exceed the limit"),
        (ruled(margin=(3.0, 1.0)), "has work for"),
        (sent(1, CLOUD, 1.0, 1.0), "may not be served at ireland"),
        (lambda at, made: (at, replace(made, costs=replace(made.costs, api=0.0))), "not what it says"),
        (unknown, "has no throughput"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found_and_named(fault: Fault, words: str) -> None:
    """One fault at a time; all else is in order."""
    at, made = fault(problem(), plan())
    if "not what" not in words:
        made = paid(at, made)
    with pytest.raises(BrokenPlan, match=words):
        verify(made, at)


def test_strain_gives_no_memory() -> None:
    """After a loss replicas may be fuller than usual, but what they have for adapters stays as it is."""
    bare = problem(rules=Rules(survive_spot=True, strain=2.0))
    buckets = tuple(replace(b, adapters_gib=4.0) if k == 0 else b for k, b in enumerate(bare.buckets))
    at = replace(bare, buckets=buckets, fits=tuple(replace(f, adapters_gib=1.0) for f in bare.fits))
    usual = [Route(r.world, r.bucket, r.target, r.shares) for r in plan().routes if r.bucket != 0]
    usual += [Route("as forecast", 0, HOME, (0.4, 0.4)), Route("as forecast", 0, "burst", (0.6, 0.6))]
    for share, fits in ((0.5, True), (0.7, False)):
        lost = [replace(r, world="without spot at ireland") for r in usual if r.bucket != 0]
        lost += [Route("without spot at ireland", 0, HOME, (share, share))]
        lost += [Route("without spot at ireland", 0, "burst", (1 - share, 1 - share))]
        made = paid(at, replace(plan(), routes=(*usual, *lost)))
        if fits:
            verify(made, at)
        else:
            with pytest.raises(BrokenPlan, match="lacks memory for adapters"):
                verify(made, at)


class TestLosses:
    """Of what is there and of use."""

    @pytest.mark.parametrize("rules", [Rules(survive_place=True), Rules(survive_spot=True)])
    @pytest.mark.parametrize(
        ("machine", "availability"),
        [("unknown", 0.8), (BOX, 0.0)],
        ids=["no model runs there", "never there"],
    )
    def test_what_is_of_no_use_is_not_lost(self, rules: Rules, machine: str, availability: float) -> None:
        """A place whose only machines serve nobody needs no plan of its own, for who solves and for who checks."""
        at = problem(
            places=(*problem().places, Place("junkyard")),
            machines=(*problem().machines, MachineType("unknown", "K80", 1, 12)),
            offers=(*problem().offers, Offer("junkyard", machine, "spot", 0.01, None, availability)),
            rules=rules,
            services=tuple(replace(s, survives=False) for s in problem().services),
        )
        assert "junkyard" not in {loss.place for loss in losses(at)}
        verify(solve(at), at)

    def test_they_take_what_they_say(self) -> None:
        """A place with all its offers, or its spot machines alone."""
        offers = [Offer(IRELAND, "m", "spot", 1.0), Offer(IRELAND, "m", "on_demand", 1.0)]
        assert [Loss(IRELAND).takes(o) for o in offers] == [True, True]
        assert [Loss(IRELAND, spot=True).takes(o) for o in offers] == [True, False]
        assert [Loss(CELLAR).takes(o) for o in offers] == [False, False]
        assert [loss.name for loss in losses(problem(rules=Rules(survive_spot=True)))] == [
            "without spot at ireland"
        ]


def test_only_spot_machines_may_be_away() -> None:
    """Who reserves pays, whether or not the machine is there: a share of it makes no sense."""
    with pytest.raises(ConfigError, match="only spot machines may be away"):
        problem(
            offers=(Offer(CELLAR, BOX, "owned", 0.2, 2, 0.5),),
            fits=(Fit(BOX, MODEL, (1.0,) * 3, (0.1,) * 3),),
        )
