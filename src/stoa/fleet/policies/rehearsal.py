"""Which rule of scaling would have done best on the demand seen so far: all of them are played, one step of time at a go.

A rule (a, h, b, z) asks for
    a · peak  +  b · long  +  z · unrest        replicas, and for what waits to be worked off soon
where peak is the highest load in h startup times, each the mean of a quarter of a startup time; long is the mean load of the
last hours; and unrest is how much the load differs, on average, from what it was a startup time before. Each rule has an
imaginary fleet that gets the true demand, whose replicas become ready a startup time after the rule asks for them, and
whose queue is a fluid, with those that can be in time before those that can't, as engines have it:
    W  <- W + (load - ready)·dt             work that can be in time, in replica-seconds; 0 at least
    W  <= slack·ready                       what the target leaves for waiting; what is above it is late from now on
    L  <- L + what is above                 late work, done when W is 0
A rule that asks for less than it has gives back what is starting first, so what is ready is the least that it has asked for
during the last startup time. The best rule is the cheapest of those that were late no more often than allowed, over
about a day that fades. So nothing about bursts or their length is assumed: the margin is the one that would have
sufficed (experts with a budget; Cesa-Bianchi and Lugosi, "Prediction, Learning, and Games", 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PEAKS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 2.0)
HOLDS = (0.0, 0.5, 1.0, 2.0)  # startup times
LONGS = (0.0, 0.2, 0.4, 0.6, 0.9, 1.3, 2.0, 3.0)
UNRESTS = (0.0, 1.0, 2.0, 4.0)
FIRST_RULE = (1.35, 1.0, 0.0, 1.0)  # until something is known
FIRST_S = 1800.0  # how long that counts against what is seen
FADE_S = 86_400.0
LONG_S = 6 * 3600.0
UNREST_S = 3600.0
STEPS_PER_STARTUP = 12


@dataclass(frozen=True, slots=True)
class Signal:
    """What rules look at, in replicas."""

    recent: tuple[float, ...] = ()  # loads by step, newest last, of a quarter of a startup time
    means: tuple[float, ...] = ()  # their means, by step, as far back as rules look
    long: float = 0.0
    unrest: float = 0.0
    seen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is remembered. Arrays have a place for each rule and are never written to."""

    step_s: float
    startup_steps: int
    signal: Signal
    asked: Floats = field(repr=False)  # [startup_steps + 1, rules]: what each has asked for, a ring
    at: int  # the newest row of it
    waiting: Floats = field(repr=False)  # [rules], replica-seconds of work that can be in time
    aside: Floats = field(repr=False)  # [rules], replica-seconds of late work
    cost: Floats = field(repr=False)  # [rules], replica-seconds, fading
    late: Floats = field(repr=False)  # [rules], requests, fading
    requests: float = 0.0  # fading
    work_s: float = 0.0  # replica-seconds of demand, fading

    @property
    def catch_up_s(self) -> float:
        """In which what waits is to be worked off."""
        return max(self.step_s, self.startup_steps * self.step_s / 4)


@cache
def rules() -> Floats:
    """[4, rules]: peak's factor, place in HOLDS, long's factor, unrest's factor."""
    return np.array(list(product(PEAKS, range(len(HOLDS)), LONGS, UNRESTS)), np.float64).T


def begin(bin_s: float, startup_s: float) -> Rehearsal:
    """A step is a whole number of bins, and a startup time about STEPS_PER_STARTUP steps at most."""
    step_s = bin_s * max(1, round(startup_s / bin_s / STEPS_PER_STARTUP))
    steps = max(0, math.ceil(startup_s / step_s - 1e-9))
    none = np.zeros(rules().shape[1])
    return Rehearsal(step_s, steps, Signal(), np.ones((steps + 1, len(none))), 0, none, none, none, none)


def play(now: Rehearsal, load: float, requests: float, slack_s: float) -> Rehearsal:
    """One step: `requests` came with work for `load` replicas; a request may wait `slack_s` for its turn."""
    ready = now.asked.min(axis=0)
    waiting = now.waiting + (load - ready) * now.step_s
    over = np.maximum(0.0, waiting - slack_s * ready)
    aside = np.maximum(0.0, now.aside + over + np.minimum(0.0, waiting))
    waiting = np.clip(waiting, 0.0, slack_s * ready)
    late = np.minimum(1.0, over / max(load * now.step_s, 1e-9))
    if now.signal.seen_s <= (now.startup_steps + 1) * now.step_s:  # no rule can have had replicas ready
        waiting = aside = late = np.zeros_like(waiting)
    signal = _heard(now, load)
    asked, at = now.asked.copy(), (now.at + 1) % len(now.asked)
    wanted = _wanted(signal, now.startup_steps) + (waiting + aside) / now.catch_up_s
    asked[at] = np.maximum(1.0, np.ceil(wanted - 1e-9))
    keep = math.exp(-now.step_s / FADE_S)
    return replace(
        now,
        signal=signal,
        asked=asked,
        at=at,
        waiting=waiting,
        aside=aside,
        cost=now.cost * keep + now.asked[now.at] * now.step_s,
        late=now.late * keep + late * requests,
        requests=now.requests * keep + requests,
        work_s=now.work_s * keep + load * now.step_s,
    )


def best(now: Rehearsal, late_share: float) -> int:
    """The rule that was cheapest among those late for at most this share; if none was, of those late least."""
    believed_late, believed_cost = _first_beliefs()
    scale = FIRST_S / max(now.step_s, min(FADE_S, now.signal.seen_s))
    first = max(now.requests, 1.0) * scale
    late = (now.late + believed_late * first) / (now.requests + first)
    cost = now.cost + believed_cost * max(now.work_s, 1.0) * scale
    allowed = max(late_share, float(late.min()) + 1e-9)
    return int(np.argmin(np.where(late <= allowed, cost, np.inf)))


def asks(now: Rehearsal, rule: int) -> float:
    """Replicas that this rule wants for the demand seen, beside what waits."""
    return float(_wanted(now.signal, now.startup_steps)[rule])


def late_share(now: Rehearsal, rule: int) -> float:
    """Of the requests of the last day or so, had the rule been followed."""
    return float(now.late[rule] / now.requests) if now.requests else 0.0


def _heard(now: Rehearsal, load: float) -> Signal:
    before, steps = now.signal, now.startup_steps
    recent = (*before.recent, load)[-max(1, round(steps / 4)) :]
    mean = sum(recent) / len(recent)
    earlier = before.means[-steps] if steps and len(before.means) >= steps else mean
    seen_s = before.seen_s + now.step_s
    long = before.long + now.step_s / min(seen_s, LONG_S) * (load - before.long)
    unrest = before.unrest + now.step_s / min(seen_s, UNREST_S) * (abs(mean - earlier) - before.unrest)
    means = (*before.means, mean)[-(1 + round(max(HOLDS) * steps)) :]
    return Signal(recent, means, long, unrest, seen_s)


def _wanted(signal: Signal, startup_steps: int) -> Floats:
    peak, hold, long, unrest = rules()
    if not signal.means:
        return np.zeros_like(peak)
    peaks = np.array([max(signal.means[-(1 + round(h * startup_steps)) :]) for h in HOLDS])
    wanted: Floats = peak * peaks[hold.astype(np.intp)] + long * signal.long + unrest * signal.unrest
    return wanted


@cache
def _first_beliefs() -> tuple[Floats, Floats]:
    """(late share, cost by work) believed before anything is seen: what asks for less than the first rule is late."""
    peak, hold, long, unrest = rules()
    a, h, b, z = FIRST_RULE
    held = np.array(HOLDS)[hold.astype(np.intp)]
    less = (peak + 0.5 * long < a + 0.5 * b - 1e-9) | (held < h) | (unrest < z)
    return np.where(less, 0.05, 0.0), peak * (1.0 + 0.1 * held) + long + 0.1 * unrest
