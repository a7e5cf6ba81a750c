"""Rules played on the demand seen, against the plainest telling of the same."""

from __future__ import annotations

import math
import random

import numpy as np

from stoa.fleet.policies import rehearsal
from stoa.fleet.policies.rehearsal import HOLDS, asks, begin, best, late_share, play, rules


def bursts(n: int, seed: int = 0) -> list[float]:
    """Loads by step: around 4, with bursts of three times that."""
    rng = random.Random(seed)
    return [rng.uniform(3, 5) * (3 if (k // 20) % 7 == 0 else 1) for k in range(n)]


def test_each_rule_fares_as_if_it_had_been_followed_alone() -> None:
    """Cost and late requests of a rule are those of a fleet that launches and drains as the rule says."""
    loads = bursts(200)
    now = begin(10.0, 60.0)
    for load in loads:
        now = play(now, load, 100.0, 1.5)
    rng = random.Random(1)
    for rule in rng.sample(range(rules().shape[1]), 20):
        cost, late = alone(rule, loads, steps=6)
        assert math.isclose(now.cost[rule], cost, rel_tol=1e-9)
        assert math.isclose(now.late[rule], late, rel_tol=1e-9, abs_tol=1e-9)


def alone(rule: int, loads: list[float], steps: int) -> tuple[float, float]:
    peak, hold, long_factor, unrest_factor = rules()[:, rule]
    launched, ready, means, seen = [], 1, [], []  # launched: steps left of each replica that starts
    waiting = aside = cost = late = long = unrest = 0.0
    keep = math.exp(-10.0 / rehearsal.FADE_S)
    for k, load in enumerate(loads):
        cost = cost * keep + (ready + len(launched)) * 10.0
        late *= keep
        if k > steps + 1:
            queue, room = waiting + (load - ready) * 10.0, 1.5 * ready
            waiting, over = min(max(0.0, queue), room), max(0.0, queue - room)
            aside = max(0.0, aside + over - max(0.0, -queue))
            late += min(1.0, over / (load * 10.0)) * 100.0
        seen.append(load)
        means.append(sum(seen[-2:]) / len(seen[-2:]))
        long += 10.0 / min((k + 1) * 10.0, rehearsal.LONG_S) * (load - long)
        earlier = means[-1 - steps] if len(means) > steps else means[-1]
        unrest += 10.0 / min((k + 1) * 10.0, rehearsal.UNREST_S) * (abs(means[-1] - earlier) - unrest)
        top = max(means[-(1 + round(HOLDS[int(hold)] * steps)) :])
        wanted = peak * top + long_factor * long + unrest_factor * unrest + (waiting + aside) / 15.0
        target = max(1, math.ceil(wanted - 1e-9))
        launched = [left - 1 for left in launched]
        ready += launched.count(0)
        launched = [left for left in launched if left > 0]
        while ready + len(launched) > target and launched:
            launched.pop()
        ready = min(ready, target)
        launched += [steps] * (target - ready - len(launched))
    return cost, late


def test_the_best_rule_is_the_cheapest_that_was_late_rarely_enough() -> None:
    """With long experience no cheaper rule kept the target, and a laxer target never costs more."""
    now = begin(10.0, 60.0)
    for load in bursts(4000):
        now = play(now, load, 100.0, 1.5)
    strict, lax = best(now, 0.005), best(now, 0.05)
    assert now.cost[lax] <= now.cost[strict]
    assert late_share(now, strict) <= 0.006
    cheaper = now.cost < 0.97 * now.cost[strict]
    assert (now.late[cheaper] / now.requests > 0.004).all()


def test_a_first_rule_stands_until_something_is_known() -> None:
    """After a minute of demand the rule is the one believed in, not the cheapest that was not late yet."""
    now = begin(10.0, 60.0)
    for _ in range(6):
        now = play(now, 4.0, 100.0, 1.5)
    assert asks(now, best(now, 0.004)) >= 1.35 * 4.0 - 1e-9


def test_steady_demand_needs_little_margin() -> None:
    """Load that never changes is served by rules that ask for hardly more."""
    now = begin(10.0, 60.0)
    for _ in range(3000):
        now = play(now, 4.0, 100.0, 1.5)
    assert math.ceil(asks(now, best(now, 0.004))) in (4, 5)


def test_what_was_remembered_is_not_written_to() -> None:
    """A step returns another memory and leaves the old one as it was."""
    before = play(begin(10.0, 60.0), 4.0, 10.0, 1.5)
    copies = [np.copy(a) for a in (before.asked, before.waiting, before.cost, before.late)]
    play(before, 400.0, 10.0, 1.5)
    for was, now in zip(copies, (before.asked, before.waiting, before.cost, before.late), strict=True):
        assert (was == now).all()


def test_long_startups_are_played_in_longer_steps() -> None:
    """A step is a whole number of bins, and a startup a dozen steps, whatever the bins are."""
    assert begin(1.0, 5.0).step_s == 1.0
    assert begin(1.0, 5.0).startup_steps == 5
    assert begin(1.0, 120.0).step_s == 10.0
    assert begin(10.0, 0.0).startup_steps == 0
