"""The fleet on simulated time: the same policy objects, replicas described by a profile.

    result = simulate(
        requests,                 # Iterable[Requests]: numpy chunks in order of time; [one] is fine
        zones,                    # Sequence[Zone]: where replicas can be had, at what price, how many, when
        profile,                  # Profile of one replica
        autoscaler,               # Autoscaler[M] of fleet/policies
        slo=Slo(ttft_s=2.0),
        bounds=Bounds(),
        seed=0,                   # which spot machine goes first, the router's choices, jitter of startups
        tick_s=10.0,              # the autoscaler is asked every so often; a demand bin is as long
        until_s=None,             # end of what is paid and counted; default: the last arrival, rounded up to a tick
        options=Options(...),     # notice_s, drain, history_s, measure_from_s, runout_s, record and more: options.py
    ) -> Result

    Requests(arrival_s, prompt_tokens, output_tokens)       numpy: float64, int32, int32, of one length
    load_requests(path) -> Requests                         all at once; read_requests(path) -> Iterator[Requests]
    scale_rate(chunks, factor, seed=0, jitter_s=60.0)       thins below 1, superposes shifted copies above
    Zone(name, on_demand_hourly=None, spot_hourly=None, spot=None, startup_s=120.0, on_demand_capacity=None)
    SpotTrace(gap_s, counts, offset_s=0.0, scale=1, inverted=False);  read_spot(path, ...) -> SpotTrace

    Result: cost_usd, attainment, ttft_mean_s, ttft_p50_s, ttft_p99_s, machine_hours {market: h}, cost {market: USD},
    availability, ready_share, preemptions, launches, refusals, moved, stall_mean_s, stall_max_s, timeline (arrays by
    tick), to_json() -> dict. The definitions are in result.py.

What a policy sees is what a live controller could know: `Demand` has bins of `tick_s` for the last `history_s` (two
days by default), as read-only memoryviews of float64 (sequences: index, slice, sum, len; `numpy.asarray(view)` copies
nothing).
"""

from __future__ import annotations

from stoa.errors import InvalidTrace
from stoa.simulator.market import Machine, Zone
from stoa.simulator.options import Options
from stoa.simulator.result import Result, Times
from stoa.simulator.run import simulate
from stoa.simulator.scaling import scale_rate
from stoa.simulator.spot import SpotTrace, read_spot
from stoa.simulator.traces import Requests, load_requests, read_requests

__all__ = [
    "InvalidTrace",
    "Machine",
    "Options",
    "Requests",
    "Result",
    "SpotTrace",
    "Times",
    "Zone",
    "load_requests",
    "read_requests",
    "read_spot",
    "scale_rate",
    "simulate",
]
