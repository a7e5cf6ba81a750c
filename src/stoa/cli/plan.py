"""`stoa plan`: which models on which machines, where, and at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stoa.cli.administration import AsJson, Db, Home

Kind = Literal["kubernetes", "ray", "skypilot"]


def plan(
    document: Annotated[Path, typer.Argument(help="what is to be planned: plan.toml or plan.yaml")],
    gap: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="share of its cost that a plan may be above the bound that is proved"
        ),
    ] = 0.005,
    time_limit_s: Annotated[float, typer.Option(min=1.0, help="for the search")] = 60.0,
    quick: Annotated[bool, typer.Option("--quick", help="a good plan at once, without a search")] = False,
    tune: Annotated[
        Path | None,
        typer.Option(help="find the margins by trying plans on this trace, which is not the one of --verify"),
    ] = None,
    tune_from: Annotated[str | None, typer.Option(help="of that trace, such as 0d")] = None,
    tune_until: Annotated[str | None, typer.Option(help="of that trace, such as 1d")] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="a trace to try the plan on: CSV, JSON lines or Parquet, or exported usage"),
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", help="of the trace, such as 1d")] = None,
    until: Annotated[str | None, typer.Option(help="of the trace, such as 2d")] = None,
    spot: Annotated[
        list[str] | None,
        typer.Option(help="PLACE=FILE: spot machines that could be had there over time (JSON); repeatable"),
    ] = None,
    spot_scale: Annotated[int, typer.Option(min=1, help="machines for each one in these traces")] = 1,
    startup_s: Annotated[float, typer.Option(min=0.0, help="from launch to ready, in the trial")] = 120.0,
    seed: Annotated[int, typer.Option(help="of what is drawn by chance in the trial")] = 0,
    old: Annotated[
        Path | None, typer.Option(help="the plan that is followed now: kept, unless the new one saves enough")
    ] = None,
    least_saving: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="share that a new plan must save to replace --old")
    ] = 0.03,
    out: Annotated[Path | None, typer.Option(help="write the plan as JSON; --old reads it")] = None,
    chart: Annotated[Path | None, typer.Option(help="write a drawing as SVG")] = None,
    apply: Annotated[Path | None, typer.Option(help="write what `stoa serve --plan` follows")] = None,
    export: Annotated[Kind | None, typer.Option(help="write manifests into --to")] = None,
    to: Annotated[Path, typer.Option(help="folder of manifests")] = Path("manifests"),
    every: Annotated[
        str | None,
        typer.Option(help="plan again so often, such as 6h, reading all files anew; --old is --out then"),
    ] = None,
    usage: Annotated[
        str | None,
        typer.Option(help="take the demand from this server's own records of so long a time, such as 14d"),
    ] = None,
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Plan which machines to rent, own and reserve, where, for which models; explain it, and try it on a trace."""
    options = {name: value for name, value in locals().items() if name != "every"}
    from stoa.cli.planning import Job

    job = Job(**options)
    if every is not None:
        job.again(every)
    elif not job.once():
        raise typer.Exit(1)
