"""How many replicas, where: the fleet's own autoscaler, a pure function of what is seen and of a small memory.

demand by bin ──▶ load in replicas (capacity) ──▶ what each rule would have asked (rehearsal)
                                                         │ cheapest that would have kept the target
what waits now ──▶ work to catch up ──▶ replicas needed ◀┘──▶ where from (mix) ──▶ launch, drain
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from stoa.fleet.policies import mix, rehearsal
from stoa.fleet.policies.capacity import Mix, Work, first_token_s, mean_lengths, work
from stoa.fleet.policies.facts import Decision, Snapshot
from stoa.fleet.policies.mix import Need, Records
from stoa.fleet.policies.rehearsal import Rehearsal

BARE_SHARE = 0.8  # of the load of now: what must serve even when a zone is lost
RISK_SHARE = 0.5  # lateness that losses of zones may cause, by that which bursts may
LENGTHS_S = 1800.0  # mean lengths of requests are taken over this time
AIM = 0.85  # late requests, of those that may be
LEAST_BUDGET, MOST_BUDGET = 0.1, 0.6  # share of what may be late that rules are chosen by


@dataclass(frozen=True, slots=True)
class Memory:
    rehearsal: Rehearsal | None = None
    records: Records = field(default_factory=Records)
    heard_s: float = -math.inf  # end of the newest bin that was taken in
    pending_bins: int = 0  # seen, and not yet played
    budget: float = 0.4  # share of the late requests allowed that the chosen rule may have had
    requests_per_s: float = 0.0  # over a day that fades
    rule: int = -1
    asked_s: float = -math.inf  # when some request came last, or was there


@dataclass(frozen=True, slots=True)
class Elastic:
    """The autoscaler. Nothing has to be set; `budget_gain` is how strongly a day's late requests move the budget."""

    budget_gain: float = 1.0

    def initial(self) -> Memory:
        return Memory()

    def decide(self, seen: Snapshot, memory: Memory) -> tuple[Decision, Memory]:
        need, memory = self.need(seen, memory)
        decision = mix.place(seen, need, memory.records)
        return replace(decision, reason=_reason(seen, memory, need)), memory

    def need(self, seen: Snapshot, memory: Memory) -> tuple[Need, Memory]:
        """How many replicas, wherever they are; the memory has heard of this snapshot."""
        lengths = mean_lengths(seen.demand, max(1, round(LENGTHS_S / seen.demand.bin_s)))
        price = work(seen.profile, lengths)
        memory = self._heard(seen, memory, price, lengths)
        memory = replace(memory, records=mix.learn(seen, memory.records))
        return _need(seen, memory, price, lengths), memory

    def _heard(self, seen: Snapshot, memory: Memory, price: Work, lengths: Mix) -> Memory:
        """Plays the bins that are new, and asks which rule is best now."""
        demand = seen.demand
        played = memory.rehearsal or rehearsal.begin(demand.bin_s, _startup_s(seen))
        new = _new_bins(seen, memory)
        pending = memory.pending_bins + new
        per_step = max(1, round(played.step_s / demand.bin_s))
        slack_s = _slack_s(seen, lengths)
        steps = pending // per_step
        end = len(demand.requests) - pending % per_step
        for first in range(end - steps * per_step, end, per_step):
            bins = slice(first, first + per_step)
            requests = sum(demand.requests[bins])
            load = price.of(sum(demand.prompt_tokens[bins]), requests * lengths.output) / played.step_s
            played = rehearsal.play(played, load, requests, slack_s)
        budget, rate = self._budget(seen, memory, new)
        rule = memory.rule
        if steps or rule < 0:
            rule = rehearsal.best(played, budget * (1.0 - seen.slo.attainment))
        return replace(
            memory,
            rehearsal=played,
            pending_bins=pending % per_step,
            budget=budget,
            requests_per_s=rate,
            rule=rule,
            asked_s=_asked_s(seen, memory, new),
            heard_s=_heard_s(seen, memory, new),
        )

    def _budget(self, seen: Snapshot, memory: Memory, new: int) -> tuple[float, float]:
        """More late requests than allowed lower the budget of the rules, fewer raise it (adaptive conformal inference,
        Gibbs and Candès 2021, in the logarithm; a day of none late is one step up)."""
        if not new:
            return memory.budget, memory.requests_per_s
        demand = seen.demand
        requests, late = sum(demand.requests[-new:]), sum(demand.late[-new:])
        passed_s = new * demand.bin_s
        weight = min(1.0, passed_s / rehearsal.FADE_S)
        known_s = max(passed_s, min(rehearsal.FADE_S, demand.bin_s * len(demand.requests)))
        rate = memory.requests_per_s + passed_s / known_s * (requests / passed_s - memory.requests_per_s)
        allowed = max(1e-9, (1.0 - seen.slo.attainment) * max(rate, 1e-9) * passed_s)
        step = self.budget_gain * weight * (AIM - late / allowed)
        budget = memory.budget * math.exp(max(-0.1, step))
        return min(MOST_BUDGET, max(LEAST_BUDGET, budget)), rate


def _startup_s(seen: Snapshot) -> float:
    """Of what can be had: the shortest, since that is where one turns to in need."""
    return min((o.offer.startup_s for o in seen.offers), default=seen.profile.load_s)


def _slack_s(seen: Snapshot, lengths: Mix) -> float:
    """What a request may wait for its turn; at least a tenth of the target, if the target can't be kept at all."""
    return max(0.1 * seen.slo.ttft_s, seen.slo.ttft_s - first_token_s(seen.profile, lengths))


def _new_bins(seen: Snapshot, memory: Memory) -> int:
    """Bins that have ended and were not yet taken in, a day at most."""
    bin_s, past = (
        seen.demand.bin_s,
        min(len(seen.demand.requests), round(rehearsal.FADE_S / seen.demand.bin_s)),
    )
    if memory.heard_s == -math.inf:
        return past
    return min(past, max(0, math.floor((seen.now_s - memory.heard_s) / bin_s + 1e-6)))


def _heard_s(seen: Snapshot, memory: Memory, new: int) -> float:
    """A clock that jumps starts anew from where it is."""
    heard_s = memory.heard_s + new * seen.demand.bin_s
    return heard_s if abs(seen.now_s - heard_s) <= seen.demand.bin_s else seen.now_s


def _asked_s(seen: Snapshot, memory: Memory, new: int) -> float:
    there = seen.demand.held > 0 or any(r.running for r in seen.replicas)
    if there or (new and sum(seen.demand.requests[-new:]) > 0):
        return seen.now_s
    return memory.asked_s


def _backlog_s(seen: Snapshot, price: Work, lengths: Mix) -> float:
    """Replica-seconds of work without a first token, beyond what is on its way to one in time."""
    waiting = seen.demand.held + sum(r.waiting for r in seen.replicas if r.state != "draining")
    ready = sum(r.state == "ready" for r in seen.replicas)
    request_s = price.of(lengths.prompt, lengths.output)
    return max(0.0, waiting * request_s - ready * _slack_s(seen, lengths))


def _need(seen: Snapshot, memory: Memory, price: Work, lengths: Mix) -> Need:
    bounds, played = seen.bounds, memory.rehearsal
    assert played is not None
    idle = seen.now_s - memory.asked_s >= bounds.idle_s
    least = max(bounds.min_replicas, 0 if idle else 1)
    load = played.signal.means[-1] if played.signal.means else 0.0
    wanted = rehearsal.asks(played, memory.rule) + _backlog_s(seen, price, lengths) / played.catch_up_s
    full = 0 if idle else math.ceil(wanted - 1e-9)
    full = min(bounds.max_replicas, max(least, full))
    risk = RISK_SHARE * memory.budget * (1.0 - seen.slo.attainment)
    return Need(min(full, math.ceil(load * BARE_SHARE)), full, risk)


def _reason(seen: Snapshot, memory: Memory, need: Need) -> str:
    played = memory.rehearsal
    load = played.signal.means[-1] if played is not None and played.signal.means else 0.0
    return f"load {load:.2f} replicas, {seen.demand.held} held: {need.full} needed"
