"""Demand as a table: a line for each size of requests, with its rate in each period or in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner.files.demand import Kind, Sizes, Who
from stoa.planner.prices.rows import Row, read_rows
from stoa.planner.problem import Period

COLUMNS = ("prompt_tokens", "output_tokens", "requests_per_s")


def read_projects(path: Path) -> set[str]:
    """Projects that the table names."""
    return {row.text("project") for row in read_rows(path, COLUMNS, param="demand.table")} - {""}


def read_table(path: Path, periods: Sequence[Period], kind_of: Callable[[Who], Kind]) -> list[Sizes]:
    """CSV with prompt_tokens, output_tokens, requests_per_s, and perhaps project, class, model, adapters (how many) and
    period (its name; blank: every period). Lines of one kind and size are one bucket; `counts` of the result are requests a
    second. ConfigError names file and line."""
    number = {period.name: i for i, period in enumerate(periods)}
    rates: dict[tuple[Kind, float, float], list[float]] = {}
    adapters: dict[tuple[Kind, float, float], float] = {}
    for row in read_rows(path, COLUMNS, param="demand.table"):
        kind = kind_of(Who(row.text("project"), row.text("class"), row.text("model")))
        key = (kind, _least(row, "prompt_tokens", 1), _least(row, "output_tokens", 0))
        rate, period = _least(row, "requests_per_s", 0), row.text("period")
        if period and period not in number:
            raise row.wrong("period", f"one of {', '.join(number)}, or blank for all of them")
        mine = rates.setdefault(key, [0.0] * len(periods))
        for i in [number[period]] if period else range(len(periods)):
            mine[i] += rate
        adapters[key] = max(adapters.get(key, 0.0), row.number("adapters") or 0.0)
    if not rates:
        raise ConfigError(f"{path}: there is no demand in it", param="demand.table")
    return [
        Sizes(kind, prompt, output, tuple(mine), adapters[kind, prompt, output])
        for (kind, prompt, output), mine in rates.items()
    ]


def _least(row: Row, column: str, least: float) -> float:
    value = row.number(column)
    if value is None or value < least:
        raise row.wrong(column, f"a number from {least:g}")
    return value
