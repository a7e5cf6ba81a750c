"""The autoscalers that `elasticity.py` compares, and what is tried of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.facts import Autoscaler
from stoa.simulator.baselines import (
    Both,
    Hpa,
    Knative,
    OnDemand,
    RayServe,
    RequestRate,
    SageServe,
    SpotHedge,
)
from stoa.simulator.baselines.parts import ANY


@dataclass(frozen=True)
class Candidate:
    """`make(**params)` is an autoscaler; `grid` has what is tried of each parameter, `start` where the search begins."""

    make: Callable[..., Autoscaler[Any]]
    grid: dict[str, Sequence[Any]]
    start: dict[str, Any]
    spot: bool = False
    order: Literal["deadline", "arrival"] = "arrival"  # in which engines take waiting requests


SCALERS: dict[str, Candidate] = {  # how many, without where; bounds are added below
    "hpa": Candidate(
        Hpa,
        {
            "target_in_flight": (10, 14, 18, 22, 27, 33, 40),
            "down_window_s": (60, 150, 300, 600, 1200, 2400),
            "metric_window_s": (10, 30, 60),
            "tolerance": (0.0, 0.1),
        },
        {"target_in_flight": 14, "down_window_s": 600, "metric_window_s": 10, "tolerance": 0.1},
    ),
    "ray": Candidate(
        RayServe,
        {
            "target_ongoing_requests": (10, 14, 18, 22, 27, 33, 40),
            "downscale_delay_s": (60, 150, 300, 600, 1200),
            "upscale_delay_s": (0, 10, 30),
            "look_back_s": (10, 30, 60),
        },
        {"target_ongoing_requests": 14, "downscale_delay_s": 600, "upscale_delay_s": 0, "look_back_s": 10},
    ),
    "knative": Candidate(
        Knative,
        {
            "container_concurrency": (14, 20, 26, 32, 40, 50, 60),
            "scale_down_delay_s": (0, 150, 300, 600, 1200, 2400),
            "stable_window_s": (60, 120, 300),
            "panic_threshold": (1.2, 1.5, 2.0),
        },
        {"container_concurrency": 20, "scale_down_delay_s": 600, "stable_window_s": 60, "panic_threshold": 1.5},
    ),
    "rate": Candidate(
        RequestRate,
        {
            "target_qps_per_replica": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
            "downscale_delay_s": (60, 150, 300, 600, 1200, 2400),
            "upscale_delay_s": (0, 20, 60),
            "window_s": (10, 30, 60),
        },
        {"target_qps_per_replica": 2.5, "downscale_delay_s": 600, "upscale_delay_s": 0, "window_s": 10},
    ),
    "sageserve": Candidate(
        SageServe,
        {
            "load": (0.3, 0.4, 0.5, 0.6, 0.7),
            "surge": (1.0, 1.3, 2.0, 5.0),
            "out_at": (0.1, 0.15, 0.2, 0.3, 0.5),
            "sigmas": (0.0, 1.0, 2.0),
            "period_s": (900.0, 3600.0),
        },
        {"load": 0.4, "surge": 1.3, "out_at": 0.2, "sigmas": 1.0, "period_s": 3600.0},
    ),
}  # fmt: skip


def candidates(factor: float) -> dict[str, Candidate]:
    """Bounds are tried in proportion to the requests."""
    most = (*(round(factor * x) for x in (0.6, 0.75, 0.9, 1.1, 1.4, 2.0)), ANY)
    least = (1, *(round(factor * x) for x in (0.15, 0.25, 0.35, 0.45)))
    bounds = {"max_replicas": most, "min_replicas": least}
    scalers = {
        name: replace(
            c, grid=bounds | c.grid, start={"max_replicas": most[3], "min_replicas": least[0]} | c.start
        )
        for name, c in SCALERS.items()
    }
    made = {name: replace(c, make=_placed(c.make, OnDemand)) for name, c in scalers.items()}
    for name in ("rate", "hpa", "sageserve"):
        c = scalers[name]
        grid = {**c.grid, "extra": (0, 1, 2, 4, 8)}
        made["spothedge" if name == "rate" else f"spothedge-{name}"] = Candidate(
            _placed(c.make, SpotHedge, "extra"), grid, {**c.start, "extra": 2}, spot=True
        )
    ordered = ("hpa", "sageserve", "spothedge", "spothedge-hpa")  # the best of them, with engines like ours
    return made | {f"{name}-deadline": replace(made[name], order="deadline") for name in ordered} | _ours()


def _placed(make: Callable[..., Any], placement: Callable[..., Any], *own: str) -> Callable[..., Any]:
    def both(**params: Any) -> Autoscaler[Any]:
        theirs = {k: v for k, v in params.items() if k in own}
        return Both(make(**{k: v for k, v in params.items() if k not in own}), placement(**theirs))

    return both


def _ours() -> dict[str, Candidate]:
    ours = Candidate(Elastic, {}, {})
    return {
        "ours": replace(ours, order="deadline"),
        "ours-arrival": ours,
        "ours-spot": replace(ours, order="deadline", spot=True),
        "ours-spot-arrival": replace(ours, spot=True),
    }
