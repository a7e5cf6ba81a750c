"""The `stoa` command: parse, call, print. One file per noun; heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stoa import __version__
from stoa.cli import adapter, bench, chat, costs, doctor, key, plan, price, serve, simulate, tenant
from stoa.errors import StoaError
from stoa.telemetry import configure_logging

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)
app.add_typer(adapter.app, name="adapter")
app.add_typer(bench.app, name="bench")
app.add_typer(tenant.app, name="tenant")
app.add_typer(key.app, name="key")
app.add_typer(price.app, name="price")
app.command("costs")(costs.costs)
app.command("simulate")(simulate.simulate)
app.command("plan")(plan.plan)


def _version(asked: bool) -> None:
    if asked:
        print(f"stoa {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """One base model, many tenants, each with its own LoRA adapters."""
    configure_logging("warning")  # to stderr: what commands print is for other programs


def main() -> None:
    """Entry point. A StoaError is one line on stderr and exit status 2."""
    try:
        app()
    except StoaError as error:
        print(f"stoa: {error.message}", file=sys.stderr)
        sys.exit(2)
