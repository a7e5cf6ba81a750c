"""Planning again when demand or prices have changed. A damper keeps an old plan that will do and that is not much dearer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from stoa.errors import ConfigError
from stoa.planner.diff import Change, diff, tell
from stoa.planner.plan import Plan, Pool, Route, cost_of
from stoa.planner.problem import Problem
from stoa.planner.program import NoPlan, solve
from stoa.planner.program.reroute import reroute
from stoa.planner.verify import BrokenPlan, verify

Machines = Mapping[tuple[str, str], int]
_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Kept:
    """The old plan under the new problem: at its prices, with its demand. `broken`: which rule it does not keep any more, ""
    if it will do. `rerouted`: with its own routes it would not; with others, on the same machines, it does."""

    plan: Plan
    broken: str = ""
    rerouted: bool = False


@dataclass(frozen=True, slots=True)
class Replan:
    """`plan`: what to follow. `new`: the best that was found, None if that was nothing. `saving`: its share of what the old
    plan would cost now, and `most`: nothing saves more; 0 if the old one will not do. `changes`: from the old plan to
    the new one, whichever is followed; none if nothing is saved."""

    plan: Plan
    kept: Kept
    new: Plan | None
    saving: float
    most: float
    least: float
    changes: tuple[Change, ...]

    @property
    def replaced(self) -> bool:
        return self.plan is self.new


def replan(
    old: Plan,
    problem: Problem,
    *,
    least_saving: float,
    running: Machines | None = None,
    gap: float = 0.001,
    time_limit_s: float = 60.0,
) -> Replan:
    """The new plan is taken if the old one breaks a rule of the problem, or if it saves at least the share `least_saving`.
    `old` is in the order of the problem's periods and buckets (`stored.onto`). `running`: reserved machines that the
    old plan has committed to and that must be paid on; None: all. Theirs is the problem's price in both plans.
    ConfigError for what does not fit; NoPlan or Unservable if neither the old plan nor any other keeps all rules."""
    if not 0 <= least_saving < 1:
        raise ConfigError(
            f"the least saving is {least_saving}; accepted: a share from 0 to below 1", param="least_saving"
        )
    bound = commit(problem, old.reserved if running is None else running)
    kept = keep(old, bound)
    try:
        new = solve(bound, gap=gap, time_limit_s=time_limit_s)
    except NoPlan:
        if kept.broken:
            raise
        return Replan(kept.plan, kept, None, 0.0, 1.0, least_saving, ())
    if kept.broken:
        return Replan(new, kept, new, 0.0, 0.0, least_saving, diff(kept.plan, new, problem))
    cost = kept.plan.costs.total
    kept = replace(kept, plan=replace(kept.plan, bound_usd=min(new.bound_usd, cost)))
    saving, most = (1 - usd / cost if cost > 0 else 0.0 for usd in (new.costs.total, kept.plan.bound_usd))
    plan = new if saving >= max(least_saving, _EPS) else kept.plan
    changes = (
        diff(kept.plan, new, problem) if saving >= _EPS else ()
    )  # another that costs the same is no news
    return Replan(plan, kept, new, saving, most, least_saving, changes)


def commit(problem: Problem, running: Machines) -> Problem:
    """With these reserved machines committed to, and those that are already. ConfigError if they are not offered."""
    committed = dict(problem.committed)
    for key, count in running.items():
        committed[key] = max(count, committed.get(key, 0))
    offers = {(o.place, o.machine): o for o in problem.offers if o.purchase == "reserved"}
    for (place, machine), count in committed.items():
        offer = offers.get((place, machine))
        if count and (offer is None or (offer.limit is not None and offer.limit < count)):
            there = "none" if offer is None else f"at most {offer.limit}"
            raise ConfigError(
                f"{count} reserved {machine} at {place} are running, and the inputs offer {there}; accepted: an offer of "
                "reserved machines there with their price, or to say that they no longer run",
                param="offers",
            )
    return replace(problem, committed={key: count for key, count in committed.items() if count})


# -- the old plan


def keep(old: Plan, problem: Problem) -> Kept:
    """The old plan under this problem. Its routes stay if they will do."""
    _check_lengths(old, problem)
    reserved = dict(old.reserved)
    for key, count in problem.committed.items():
        reserved[key] = max(count, reserved.get(key, 0))
    missing = _missing(replace(old, reserved=reserved), problem)
    if missing:
        return Kept(old, missing)
    plan = _recosted(problem, old, reserved, old.routes)
    broken = _broken(plan, problem)
    if not broken:
        return Kept(plan)
    routes = reroute(old.rented, problem)
    if routes is not None:
        other = _recosted(problem, old, reserved, routes)
        if not _broken(other, problem):
            return Kept(other, rerouted=True)
    return Kept(plan, broken)


def _recosted(problem: Problem, old: Plan, reserved: Machines, routes: tuple[Route, ...]) -> Plan:
    costs = cost_of(problem, old.rented, reserved, routes)
    return replace(old, reserved=reserved, routes=routes, costs=costs, bound_usd=-math.inf)


def _broken(plan: Plan, problem: Problem) -> str:
    try:
        verify(plan, problem)
    except BrokenPlan as error:
        return error.message
    return ""


def _check_lengths(old: Plan, problem: Problem) -> None:
    lengths = {len(r.counts) for r in old.rented} | {len(r.shares) for r in old.routes}
    if lengths - {len(problem.periods)} or any(r.bucket >= len(problem.buckets) for r in old.routes):
        raise ConfigError(
            f"the old plan is not in the order of the new inputs' {len(problem.periods)} periods and "
            f"{len(problem.buckets)} buckets; accepted: a stored plan, laid onto them",
            param="periods",
        )


def _missing(old: Plan, problem: Problem) -> str:
    """What the old plan needs that is no longer there; "" if nothing."""
    offers = {(o.place, o.machine, o.purchase) for o in problem.offers}
    fits = {(f.machine, f.model, f.pace) for f in problem.fits}
    apis = {a.name for a in problem.apis}
    wanted = [(r.pool.place, r.pool.machine, r.purchase) for r in old.rented]
    wanted += [(place, machine, "reserved") for (place, machine), count in old.reserved.items() if count]
    for place, machine, purchase in wanted:
        if (place, machine, purchase) not in offers:
            return f"{machine} at {place} is no longer offered ({purchase.replace('_', '-')})"
    for target in [r.pool for r in old.rented] + [r.target for r in old.routes]:
        if isinstance(target, Pool) and (target.machine, target.model, target.pace) not in fits:
            return f"{target.name} is no longer known to be possible"
        if isinstance(target, str) and target not in apis:
            return f"the API {target} is no longer there"
    return ""


# -- in words


def words(found: Replan) -> str:
    """What was decided and why, and what differs."""
    return "\n".join((_verdict(found), *([tell(found.changes)] if found.changes else [])))


def _verdict(found: Replan) -> str:
    if found.new is None:
        return "The old plan stays: it keeps all rules, and no other was found in time."
    if found.kept.broken:
        return f"The new plan replaces the old one, which no longer keeps all rules: {found.kept.broken}."
    other = ", with other routes" if found.kept.rerouted else ""
    costs = (
        f"the old one would now cost {found.kept.plan.costs.total:,.2f} USD{other}, the new one "
        f"{found.new.costs.total:,.2f} USD: {100 * max(0.0, found.saving):.1f} % less"
    )
    least = f"at least {100 * found.least:g} %"
    if found.replaced:
        return f"The new plan replaces the old one; {costs}, and {least} was asked for."
    could = f"No plan could save more than {100 * found.most:.1f} %."
    would = " With the new one would change:" if found.changes else ""
    return f"The old plan stays; {costs}, and {least} was asked for. {could}{would}"
