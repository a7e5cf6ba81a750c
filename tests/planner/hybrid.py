"""A small company's plan, by hand: two boxes in the cellar, a region of a cloud, and an API for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stoa.planner.check import check
from stoa.planner.livefacts import LiveFacts, Site
from stoa.planner.plan import Plan, Pool, Rented, Route, cost_of
from stoa.planner.problem import (
    USUAL,
    Api,
    Bucket,
    Fit,
    Group,
    MachineType,
    Offer,
    Period,
    Place,
    Problem,
    Rules,
    Service,
)

MODEL = "ours"
BOX, SMALL = "box", "g6.xlarge"
CELLAR, IRELAND, HOSTED = "cellar", "ireland", "deepinfra"
EVERYWHERE = frozenset({CELLAR, IRELAND, HOSTED})
HOME = Pool(CELLAR, BOX, MODEL)
CLOUD = Pool(IRELAND, SMALL, MODEL)


def facts(provider: str = "aws", region: str = "eu-west-1") -> LiveFacts:
    """Nights begin at midnight, days at noon; the cloud's machines are at this provider."""
    return LiveFacts([[0] * 12 + [1] * 12] * 7, sites={IRELAND: Site(provider, region)})


def problem(**changes: Any) -> Problem:
    """Two halves of a day. Buckets: chat of all, chat of the clinics, and what may take its time."""
    found = Problem(
        periods=(Period("night", 12, 30), Period("day", 12, 30)),
        places=(
            Place(CELLAR, frozenset({"owned", "eu"})),
            Place(IRELAND, frozenset({"cloud", "eu"})),
            Place(HOSTED, frozenset({"api", "deepinfra"})),
        ),
        machines=(MachineType(BOX, "L40S", 2, 96), MachineType(SMALL, "L4", 1, 24)),
        offers=(
            Offer(CELLAR, BOX, "owned", 0.2, 2),
            Offer(IRELAND, SMALL, "on_demand", 0.8),
            Offer(IRELAND, SMALL, "spot", 0.3, 8, 0.9),
            Offer(IRELAND, SMALL, "reserved", 0.5),
        ),
        fits=(
            Fit(BOX, MODEL, (0.2, 0.2, 0.2), (0.1, 0.1, 0.1)),
            Fit(SMALL, MODEL, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        ),
        services=(Service("chat", (MODEL,), 2.0), Service("slow", (MODEL,), 30.0)),
        groups=(
            Group("default", EVERYWHERE, ("shop",)),
            Group("patients", frozenset({CELLAR}), ("clinic-1",), ("patients: clinic-*: only owned",)),
        ),
        buckets=(
            Bucket("chat", "default", 400, 100, (4.0, 12.0)),
            Bucket("chat", "patients", 400, 100, (1.0, 2.0)),
            Bucket("slow", "default", 400, 100, (4.0, 0.0)),
        ),
        apis=(Api("burst", HOSTED, MODEL, 1e-6, 2e-6, 0.6, 0.02),),
    )
    return check(replace(found, **changes))


def plan(at: Problem | None = None) -> Plan:
    """By night the cellar alone; by day two machines of the cloud that are reserved, three more on the spot market, and a
    tenth of the chat at the API. Without the cellar, half of it."""
    at = at or problem()
    rented = (
        Rented(HOME, "owned", (2, 2)),
        Rented(CLOUD, "reserved", (0, 2)),
        Rented(CLOUD, "spot", (0, 3)),
    )
    routes = (
        Route(USUAL, 0, HOME, (1.0, 0.4)),
        Route(USUAL, 0, CLOUD, (0.0, 0.5)),
        Route(USUAL, 0, "burst", (0.0, 0.1)),
        Route(USUAL, 1, HOME, (1.0, 1.0)),
        Route(USUAL, 2, HOME, (1.0, 1.0)),
        Route("without cellar", 0, CLOUD, (0.5, 0.5)),
        Route("without cellar", 0, "burst", (0.5, 0.5)),
    )
    reserved = {(IRELAND, SMALL): 2}
    costs = cost_of(at, rented, reserved, routes)
    return Plan(rented, reserved, routes, costs, 0.99 * costs.total)


def budgeted(usd: float) -> Problem:
    return problem(rules=Rules(budget_usd=usd))
