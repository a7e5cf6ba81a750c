"""The planner's obvious rival: each bucket goes where it is cheapest, counts are rounded up, part-filled machines are
emptied into others, and what the loss of spot machines would leave unserved gets spare machines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

from benchmarks.planner.greedy_world import Market, World

from stoa.planner.losses import losses
from stoa.planner.plan import Plan, Pool, Rented, Route, cost_of
from stoa.planner.problem import Offer, Problem, Purchase
from stoa.planner.verify import BrokenPlan, verify

Worlds = Mapping[str, World]  # "" is the usual one


def greedy(problem: Problem) -> Plan | None:
    """The cheapest of its plans over all sets of purchase options, over buckets in order of their tokens or after those that
    may go to fewer places, and over two ideas of cheap: by the token, or by the machines that it adds. None if none
    keeps the rules, of which it knows margins, limits and the loss of spot machines."""
    kinds: list[Purchase] = sorted({o.purchase for o in problem.offers} - {"owned"})
    some = (set(chosen) | {"owned"} for n in range(len(kinds) + 1) for chosen in combinations(kinds, n))
    found = [
        plan
        for chosen, scarce_first, by_token in product(some, (False, True), (False, True))
        for plan in _plans(Market(problem, chosen, scarce_first=scarce_first, by_token=by_token))
    ]
    return min(found, key=lambda plan: plan.costs.total, default=None)


def _plans(g: Market) -> Iterator[Plan]:
    """Reserved machines by the hour; then as many of them as the busiest, a middling and the quietest period took, which are
    paid for and so are used first, others bought beyond them."""
    plan = _plan(g, g.problem)
    if plan is None:
        return
    yield plan
    used = {key: sorted(n) for key, n in _reserved(plan.rented).items()}
    for level in (-1, len(g.problem.periods) // 2, 0) if used else ():
        limits = {key: n[level] for key, n in used.items()}
        paid = replace(g.problem, offers=tuple(_paid(o, limits) for o in g.problem.offers))
        again = _plan(Market(paid, g.purchases, scarce_first=g.scarce_first, by_token=g.by_token), g.problem)
        if again is not None:
            yield again


def _paid(offer: Offer, limits: Mapping[tuple[str, str], int]) -> Offer:
    if offer.purchase != "reserved":
        return offer
    return replace(offer, hourly_usd=0.0, limit=limits.get((offer.place, offer.machine), 0))


def _reserved(rented: Sequence[Rented]) -> dict[tuple[str, str], list[int]]:
    """Reserved machines that run, by period."""
    found: dict[tuple[str, str], list[int]] = {}
    for r in rented:
        if r.purchase == "reserved":
            key = (r.pool.place, r.pool.machine)
            found[key] = [a + b for a, b in zip(found.get(key, [0] * len(r.counts)), r.counts, strict=True)]
    return found


def _plan(g: Market, problem: Problem) -> Plan | None:
    """At the prices of `problem`, which is otherwise the market's own."""
    flat = [0] * len(problem.periods)
    counts: dict[tuple[Pool, Purchase], list[int]] = defaultdict(lambda: [*flat])
    shares: dict[tuple[str, int, Pool | str], list[float]] = defaultdict(lambda: [0.0 for _ in flat])
    for t in range(len(flat)):
        worlds = _period(g, t)
        if worlds is None:
            return None
        for m, n in worlds[""].counts().items():
            pool = g.target(m)
            assert isinstance(pool, Pool)
            counts[pool, g.options[m][0].purchase][t] += n
        for name, world in worlds.items():
            for (k, m), share in world.shares.items():
                for likely in [s.name for s in problem.likely] if name == "" else [name]:
                    shares[likely, k, g.target(m)][t] += max(0.0, share)
    rented = tuple(Rented(pool, purchase, tuple(n)) for (pool, purchase), n in counts.items())
    reserved = dict(problem.committed)
    for key, taken in _reserved(rented).items():
        reserved[key] = max(reserved.get(key, 0), *taken)
    routes = tuple(Route(w, k, target, tuple(row)) for (w, k, target), row in shares.items())
    plan = Plan(rented, reserved, routes, cost_of(problem, rented, reserved, routes), 0.0, method="greedy")
    try:
        verify(plan, problem)
    except BrokenPlan:
        return None
    return plan


def _period(g: Market, t: int) -> Worlds | None:
    """Spares that a loss asks for are used in the usual world the second time."""
    p = g.problem
    factor = p.margin(t) * max((s.factors[t] for s in p.scenarios), default=1.0)
    survives = {s.name for s in p.services if s.survives}
    kept = [k for k, b in enumerate(p.buckets) if b.service in survives]
    lost = {loss.name: {m for m, (o, _) in enumerate(g.options) if loss.takes(o)} for loss in losses(p)}
    best, best_usd, spare = None, math.inf, dict[int, int]()
    for _ in range(2 if any(lost.values()) else 1):
        usual = World(g, t, factor, spare)
        if not usual.fill(range(len(p.buckets))):
            break
        usual = usual.consolidated()
        counts = used = {m: n for m, n in usual.counts().items() if usual.work[m] > 0}
        found = {"": usual}
        for name, gone in lost.items():
            found[name] = World(g, t, p.margin(t), counts, frozenset(gone), p.rules.strain)
            if not found[name].fill(kept):
                return best
            counts = found[name].counts()
        usual.there = counts
        if usual.usd() < best_usd:
            best, best_usd = found, usual.usd()
        spare = {m: n - used.get(m, 0) for m, n in counts.items() if n > used.get(m, 0)}
    return best
