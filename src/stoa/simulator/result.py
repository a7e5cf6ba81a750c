"""What a simulation has found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoa.simulator.core import HIST_BINS, HIST_LEAST_S, HIST_MOST_S

TIMELINE = (  # by tick
    "t_s",  # the tick's end
    "ready_spot", "ready_on_demand", "starting", "draining",  # replicas
    "hourly_usd",  # what all machines cost
    "arrivals", "late",  # in the tick
    "in_flight", "held",  # at its end
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Times:
    """Of requests, in seconds. Quantiles are middles of bins 0.7 % wide, or max if that is less, and inf where they fall
    on requests that never got there; mean and max are exact, of those that did."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @staticmethod
    def of(hist: NDArray[np.int64], wanted: int, had: float, sum_s: float, max_s: float = math.nan) -> Times:
        """`wanted`: how many should have had that time, `had`: how many did."""
        if not had:
            never = math.inf if wanted else math.nan
            return Times(never, never, never, never, never)
        above = np.cumsum(hist)
        width = math.log(HIST_MOST_S / HIST_LEAST_S) / HIST_BINS
        most = math.inf if math.isnan(max_s) else max_s

        def quantile(share: float) -> float:
            rank = max(1, math.ceil(share * wanted))
            if rank > above[-1]:
                return math.inf
            return min(most, HIST_LEAST_S * math.exp((int(np.searchsorted(above, rank)) + 0.5) * width))

        longest = quantile(1.0) if math.isnan(max_s) else max_s
        return Times(sum_s / had, quantile(0.5), quantile(0.9), quantile(0.99), longest)


@dataclass(frozen=True, slots=True)
class Result:
    """Of the measured part of a run. A request counts by its arrival."""

    measured_s: float
    cost_usd: float
    cost: Mapping[str, float]  # by market
    machine_hours: Mapping[str, float]  # by market, launch to end
    requests: int  # those too long for a replica's memory not among them
    attainment: float  # share of them whose first token came within the target
    unserved: int  # of them, without a first token at the end
    ttft: Times
    tpot: Times  # a request's time per output token after the first, moves and stalls included
    availability: float  # 1 - share of time in which somebody waited and no replica took requests
    ready_share: float  # of time, with a replica that takes requests
    preemptions: int  # spot machines taken away
    launches: int
    refusals: int  # launches for which there was no machine
    moved: int  # requests that changed replicas, of the whole run, as all below
    kv_preempted: int  # sequences that gave way to others for memory
    too_long: int
    output_tokens: int
    stalls: int  # of answers under way: moved, or gave way
    stall_mean_s: float  # from a token to the next, over a stall
    stall_max_s: float
    adapter_hits: int  # requests that met their adapter at their replica
    adapter_loads: int  # and those that did not
    timeline: Mapping[str, Sequence[float]]  # columns `TIMELINE`
    first_s: NDArray[np.float64] | None = None  # by request, if recorded; NaN: never
    end_s: NDArray[np.float64] | None = None

    @property
    def ttft_mean_s(self) -> float:
        return self.ttft.mean_s

    @property
    def ttft_p50_s(self) -> float:
        return self.ttft.p50_s

    @property
    def ttft_p99_s(self) -> float:
        return self.ttft.p99_s

    @property
    def total_machine_hours(self) -> float:
        return sum(self.machine_hours.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is infinite or was never measured."""
        facts = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("timeline", "first_s", "end_s")
        }
        facts["timeline"] = {name: list(column) for name, column in self.timeline.items()}
        return {name: _plain(value) for name, value in facts.items()}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
