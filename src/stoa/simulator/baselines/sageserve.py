"""Forecast and integer program once an hour, corrected by what is seen: an autoscaler of SageServe's kind.

Source: Jaiswal et al., "SageServe: Optimizing LLM Serving on Cloud Data Centers with Forecast Aware Auto-Scaling", POMACS
2025 (arXiv 2502.14617): ARIMA forecast of the next hour's peak of tokens per second, an integer program for the replicas,
thresholds on utilization, and a correction where the seen rate is far from the forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.simulator.baselines.forecast import arima
from stoa.simulator.baselines.parts import ANY, in_flight, mean_of_last, ready


@dataclass(frozen=True, slots=True)
class SageMemory:
    planned_s: float = -math.inf
    forecast: float = 0.0  # replicas' worth of work per second at the coming peak
    beyond: int = 0  # replicas that utilization has asked for beyond the plan
    corrected_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class SageServe:
    """A scaler. Once a `period_s` it forecasts the peak of work until the next plan has started and solves

        minimize  sum_o price_o n_o   subject to   C1: load * sum_o n_o >= (1 + buffer) * peak,   n_o >= 0, integer

    over the offers o. One base model on one kind of machine makes C1 one knapsack row with equal weights, so the optimum
    is in closed form: n = ceil((1 + buffer) * peak / load) at the cheapest offer; the placement knows where.

    Work is tokens, each weighted by the seconds of a replica it costs (the source counts tokens of a measured tokens per
    second; here prompts and outputs cost differently). Where the rate of the last `window_s` is more than
    `surge` or less than `lull` times the forecast, it is planned for itself. Utilization (requests over the ready replicas'
    places) above `out_at` adds what would bring it down there, below `in_at` takes it back.
    """

    load: float = 0.7  # share of a replica's highest throughput at which the SLO holds
    buffer: float = 0.1
    sigmas: float = 1.0  # of the forecast's error, added to the peak
    period_s: float = 3600.0
    bin_s: float = 300.0
    history_s: float = 14 * 86400.0
    lags: int = 12
    season_s: float = 86400.0
    window_s: float = 60.0
    surge: float = 5.0
    lull: float = 0.5
    out_at: float = 0.7
    in_at: float = 0.3
    correct_s: float = 15.0  # between two corrections by utilization
    min_replicas: int = 1
    max_replicas: int = ANY

    def initial(self) -> SageMemory:
        return SageMemory()

    def target(self, seen: Snapshot, memory: SageMemory) -> tuple[int, SageMemory]:
        planned_s, forecast, beyond = memory.planned_s, memory.forecast, memory.beyond
        if seen.now_s - planned_s >= self.period_s:
            planned_s, forecast, beyond = seen.now_s, self._peak(seen), 0
        rate = self._rate(seen)
        far = rate > self.surge * forecast or rate < self.lull * forecast
        planned = self._replicas(rate if far else forecast)
        beyond, corrected_s = self._correct(seen, planned, beyond, memory.corrected_s)
        target = max(self.min_replicas, min(self.max_replicas, planned + beyond))
        return target, SageMemory(planned_s, forecast, beyond, corrected_s)

    def _replicas(self, work: float) -> int:
        return math.ceil((1.0 + self.buffer) * work / self.load - 1e-9)

    def _rate(self, seen: Snapshot) -> float:
        demand = seen.demand
        prompt_s, output_s = token_seconds(seen)
        prompts = mean_of_last(demand.prompt_tokens, demand.bin_s, self.window_s)
        outputs = mean_of_last(demand.output_tokens, demand.bin_s, self.window_s)
        return (prompts * prompt_s + outputs * output_s) / demand.bin_s

    def _peak(self, seen: Snapshot) -> float:
        demand = seen.demand
        prompt_s, output_s = token_seconds(seen)
        per_bin = max(1, round(self.bin_s / demand.bin_s))
        kept = min(len(demand.requests), round(self.history_s / demand.bin_s)) // per_bin * per_bin
        if not kept:
            return self._rate(seen)
        history = []
        for at in range(len(demand.requests) - kept, len(demand.requests), per_bin):
            prompts = sum(demand.prompt_tokens[at : at + per_bin])
            outputs = sum(demand.output_tokens[at : at + per_bin])
            history.append((prompts * prompt_s + outputs * output_s) / (per_bin * demand.bin_s))
        ahead_s = self.period_s + max((o.offer.startup_s for o in seen.offers), default=0.0)
        steps = math.ceil(ahead_s / self.bin_s)
        coming, error = arima(history, steps, lags=self.lags, season=round(self.season_s / self.bin_s))
        return float(coming.max()) + self.sigmas * error

    def _correct(self, seen: Snapshot, planned: int, beyond: int, corrected_s: float) -> tuple[int, float]:
        there = ready(seen.replicas)
        if seen.now_s - corrected_s < self.correct_s or not there:
            return beyond, corrected_s
        places = seen.profile.max_num_seqs
        requests = in_flight(seen, self.correct_s)
        utilization = requests / (there * places)
        if utilization > self.out_at:
            return max(beyond, math.ceil(requests / (places * self.out_at)) - planned), seen.now_s
        if utilization < self.in_at and beyond:
            return beyond - 1, seen.now_s
        return beyond, corrected_s


def token_seconds(seen: Snapshot) -> tuple[float, float]:
    """Seconds of a busy replica that a prompt token and an output token take, each row with its share of full steps."""
    profile, demand = seen.profile, seen.demand
    requests = max(1.0, sum(demand.requests[-60:]))
    context = (sum(demand.prompt_tokens[-60:]) + 0.5 * sum(demand.output_tokens[-60:])) / requests
    return row_seconds(profile, context)


def row_seconds(profile: Profile, context_tokens: float) -> tuple[float, float]:
    """(prompt row, decode row of so much context) in steps as full as they get."""
    prompt_s = profile.prompt_row_s + profile.fixed_s / profile.max_batch_tokens
    decode_s = profile.decode_row_s + profile.context_token_s * context_tokens
    return prompt_s, decode_s + profile.fixed_s / profile.max_num_seqs
