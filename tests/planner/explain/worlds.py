"""A problem that is reckoned by hand: one size of request, each of which takes a second of any machine."""

from __future__ import annotations

from typing import Any

from stoa.fleet.policies.profile import Profile
from stoa.planner.check import check
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
    Rules,
    Service,
)

DAY = (Period("00:00-12:00", 12.0, 30.0), Period("12:00-24:00", 12.0, 30.0))
OWN = Offer("cellar", "box", "owned", 0.1, limit=1, why="0.4 kW of power at 0.25 USD a kWh")
HOURLY = Offer("cloud", "box", "on_demand", 1.0)
SPOT = Offer("cloud", "box", "spot", 0.4, limit=8)
RESERVED = Offer("cloud", "box", "reserved", 0.6)
CHAT = Service("chat", ("ours",), ttft_s=2.0, tpot_s=0.1)
HOSTED = Api("burst", "far", "ours", 1e-5, 1e-5, ttft_s=0.5, tpot_s=0.02)


def world(*, night: float = 3.0, day: float = 3.0, **changes: Any) -> Problem:
    """Requests of 900 + 100 tokens, so many a second in the first and the second half of the day; one owned machine, and
    others by the hour."""
    base: dict[str, Any] = {
        "periods": DAY,
        "places": (Place("cellar", frozenset({"owned"})), Place("cloud"), Place("far", frozenset({"api"}))),
        "machines": (MachineType("box", "L40S", 1, 48.0, power_kw=0.4),),
        "offers": (OWN, HOURLY),
        "fits": (Fit("box", "ours", (1.0,), (0.5,), why="by hand"),),
        "services": (CHAT,),
        "groups": (Group("all", frozenset({"cellar", "cloud", "far"})),),
        "buckets": (Bucket("chat", "all", 900.0, 100.0, (night, day)),),
    }
    return check(Problem(**(base | changes)))


def limited(*limits: int | None, **changes: Any) -> Problem:
    """Three requests a second, and so many machines that are owned, and by the hour."""
    own, hourly = limits
    offers = tuple(
        Offer(o.place, o.machine, o.purchase, o.hourly_usd, n) for o, n in ((OWN, own), (HOURLY, hourly))
    )
    return world(offers=offers, **changes)


def rules(**changes: Any) -> Rules:
    return Rules(**changes)


def profiled(**changes: Any) -> Profile:
    facts: dict[str, Any] = {
        "name": "p", "fixed_s": 0.02, "prompt_row_s": 1e-4, "decode_row_s": 1e-4, "kv_tokens": 200_000,
    }  # fmt: skip
    return Profile(**(facts | changes))
