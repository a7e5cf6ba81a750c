"""`stoa simulate`: a fleet on simulated time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.cli.outputs import check_outputs
from stoa.errors import ConfigError

if TYPE_CHECKING:
    from stoa.simulator import Result, Zone

_LEAST_TICK_S = 0.001


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(
            help="requests: CSV with a header (arrival_s, prompt_tokens, output_tokens and perhaps project, adapter) "
            "or JSON lines, plain or .gz; arrivals are seconds or dates"
        ),
    ],
    profile: Annotated[
        Path, typer.Option(help="what one replica can do: JSON, as `stoa bench profile` writes it")
    ],
    policy: Annotated[
        str,
        typer.Option(
            help="elastic (the fleet's own), or static-peak, hpa, ray-serve, knative, request-rate, sageserve, each with "
            "+on-demand or +spot-hedge"
        ),
    ] = "elastic",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a parameter of the policy, FIELD=VALUE; repeatable")
    ] = None,
    zones: Annotated[
        Path | None,
        typer.Option(help="JSON list of zones with their prices and spot traces, instead of those below"),
    ] = None,
    on_demand_hourly: Annotated[float | None, typer.Option(help="USD an hour of a replica's machine")] = None,
    spot_hourly: Annotated[float | None, typer.Option(help="USD an hour of a spot machine")] = None,
    spot: Annotated[
        list[Path] | None, typer.Option(help="spot capacity over time, a zone each (JSON); repeatable")
    ] = None,
    spot_scale: Annotated[int, typer.Option(help="machines for each one in the spot traces")] = 1,
    spot_offset_s: Annotated[float, typer.Option(help="where in the spot traces to begin")] = 0.0,
    spot_inverted: Annotated[
        bool, typer.Option("--spot-inverted", help="read values as machines that can not be had")
    ] = False,
    startup_s: Annotated[float, typer.Option(help="from launch to ready")] = 120.0,
    startup_spread: Annotated[float, typer.Option(help="startups vary by this share")] = 0.0,
    notice_s: Annotated[float, typer.Option(help="warning before a spot machine goes")] = 120.0,
    adapters_each: Annotated[
        int,
        typer.Option(help="adapters a replica holds at once, if the trace has them; 0: they do not matter"),
    ] = 64,
    drain: Annotated[str, typer.Option(help="migrate or finish: requests of drained replicas")] = "migrate",
    order: Annotated[
        str,
        typer.Option(
            help="deadline or arrival: of waiting requests, those that can be in time first, or as they come"
        ),
    ] = "deadline",
    ttft_s: Annotated[float, typer.Option(help="target for the first token")] = 2.0,
    attainment: Annotated[float, typer.Option(help="share of requests that must meet it")] = 0.99,
    min_replicas: Annotated[int, typer.Option()] = 0,
    max_replicas: Annotated[int, typer.Option()] = 1000,
    idle_s: Annotated[float, typer.Option(help="without a request, before the last replica goes")] = 300.0,
    rate: Annotated[float, typer.Option(help="scale the trace's request rate by this factor")] = 1.0,
    jitter_s: Annotated[float, typer.Option(help="copies come up to so much later, at rates above 1")] = 60.0,
    sort: Annotated[bool, typer.Option("--sort", help="put the trace in order first, in memory")] = False,
    until_s: Annotated[
        float | None, typer.Option(help="end of the simulation; default: of the trace")
    ] = None,
    measure_from_s: Annotated[float, typer.Option(help="count nothing before this")] = 0.0,
    tick_s: Annotated[float, typer.Option(help="the policy decides so often")] = 10.0,
    seed: Annotated[int, typer.Option(help="of everything drawn by chance")] = 0,
    out: Annotated[Path | None, typer.Option(help="write all figures and the course of time as JSON")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a drawing over time as SVG")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print figures as JSON")] = False,
) -> None:
    """Run a request trace through a simulated fleet under the live fleet's policies."""
    from stoa.fleet.policies.facts import Bounds, Slo
    from stoa.simulator import Options, core, read_requests, scale_rate
    from stoa.simulator import simulate as run
    from stoa.simulator.choice import choose_policy
    from stoa.simulator.scenario import read_profile, read_zones
    from stoa.simulator.traces import LATEST_S

    check_outputs(out=out, plot=plot)
    _check_choice("drain", drain, "migrate", "finish")
    _check_choice("order", order, "deadline", "arrival")
    _check_above_0(ttft_s=ttft_s, rate=rate, attainment=attainment)
    _check_between(0, 1, attainment=attainment, startup_spread=startup_spread)
    _check_between(_LEAST_TICK_S, LATEST_S, tick_s=tick_s)
    _check_between(
        0, LATEST_S,
        ttft_s=ttft_s, notice_s=notice_s, startup_s=startup_s, jitter_s=jitter_s, idle_s=idle_s,
        measure_from_s=measure_from_s, until_s=0 if until_s is None else until_s,
    )  # fmt: skip
    if until_s is not None and measure_from_s >= until_s:
        raise ConfigError(
            f"measure_from_s is {measure_from_s}; accepted: below until_s, {until_s}", param="measure_from_s"
        )
    _check_between(-LATEST_S, LATEST_S, spot_offset_s=spot_offset_s)
    _check_between(0, 1_000_000, spot_scale=spot_scale, adapters_each=adapters_each)
    _check_between(1, 1_000_000, max_replicas=max_replicas)
    _check_between(0, max_replicas, min_replicas=min_replicas)
    places = read_zones(zones) if zones is not None else _zones(
        on_demand_hourly, spot_hourly, spot or [], spot_scale, spot_offset_s, spot_inverted, startup_s
    )  # fmt: skip
    requests = scale_rate(read_requests(trace, sort=sort), rate, seed=seed, jitter_s=jitter_s)
    if not core.available():
        print("stoa: the simulator's C library was not built: it goes step by step, slowly", file=sys.stderr)
    started = time.perf_counter()
    result = run(
        requests, places, read_profile(profile), choose_policy(policy, settings or ()),
        slo=Slo(ttft_s, attainment), bounds=Bounds(min_replicas, max_replicas, idle_s), seed=seed, tick_s=tick_s,
        until_s=until_s,
        options=Options(
            notice_s=notice_s, drain="finish" if drain == "finish" else "migrate",
            order="arrival" if order == "arrival" else "deadline", startup_spread=startup_spread,
            measure_from_s=measure_from_s, room=max_replicas + 256, adapters_each=adapters_each,
        ),
    )  # fmt: skip
    _show(result, time.perf_counter() - started, f"{policy} on {trace.name}", out, plot, as_json=as_json)


def _zones(
    on_demand_hourly: float | None, spot_hourly: float | None, spot: list[Path],
    scale: int, offset_s: float, inverted: bool, startup_s: float,
) -> list[Zone]:  # fmt: skip
    from stoa.simulator import Zone, read_spot
    from stoa.simulator.scenario import check_zones

    if on_demand_hourly is None and spot_hourly is None:
        raise ConfigError(
            "say what machines cost: --on-demand-hourly, --spot-hourly, or --zones", param="zones"
        )
    if not spot:
        return check_zones([Zone("zone", on_demand_hourly, spot_hourly, None, startup_s)])
    if spot_hourly is None:
        raise ConfigError("spot traces need a price: --spot-hourly", param="spot_hourly")
    traces = [read_spot(path, offset_s=offset_s, scale=scale, inverted=inverted) for path in spot]
    return check_zones(
        [
            Zone(path.stem, on_demand_hourly, spot_hourly, t, startup_s)
            for path, t in zip(spot, traces, strict=True)
        ]
    )


def _check_choice(name: str, value: str, *accepted: str) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} {value!r} is unknown; accepted: {', '.join(accepted)}", param=name)


def _check_above_0(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; accepted: above 0", param=name)


def _check_between(least: float, most: float, **values: float) -> None:
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(f"{name} is {value}; accepted: {least} to {most}", param=name)


def _show(
    result: Result, wall_s: float, title: str, out: Path | None, plot: Path | None, *, as_json: bool
) -> None:
    facts = result.to_json()
    facts["simulated_in_s"] = round(wall_s, 3)
    if out is not None:
        out.write_text(json.dumps(facts))
    if plot is not None:
        from stoa.simulator.plot import draw

        plot.write_text(draw(result, title))
    del facts["timeline"]
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:>15s}  {_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items()) or "none"
    if value is None:
        return "never"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
