"""Catalogs in SkyPilot's layout: one CSV file a cloud, a line for each type of machine in each zone.

Columns stand in any order, and only some of them in older versions. Read are InstanceType, AcceleratorName,
AcceleratorCount, GpuInfo, Region, AvailabilityZone, Price, SpotPrice. A blank price: not sold that way. Where accelerators
are sold apart from their hosts (lines without InstanceType), a machine costs what its host and its accelerators cost
together.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoa.planner import accelerators
from stoa.planner.prices.machine_types import facts_of
from stoa.planner.prices.normal import MachinePrice
from stoa.planner.prices.rows import Row, read_rows

COLUMNS = ("instancetype", "acceleratorname", "acceleratorcount", "region", "price")
_LEAST_MIB = 1024  # some clouds' files give GiB where MiB are meant: no accelerator is as small as 1 GiB


@dataclass(frozen=True, slots=True)
class _Prices:
    on_demand_usd: float | None
    spot_usd: float | None


_Key = tuple[str, str, str, int]  # region, zone, accelerator, how many
_SOLD_AS = {"a3-megagpu-8g": "H100-MEGA"}  # the same accelerator under a name and price of its own


def read_skypilot(
    path: Path, provider: str | None = None, *, regions: Collection[str] | None = None
) -> list[MachinePrice]:
    """Machines with accelerators, of all regions or of those named. `provider`: by default the folder's name, as catalogs
    have it. ConfigError names file and line of a price that is zero, negative or no number."""
    provider = path.absolute().parent.name if provider is None else provider
    wanted = None if regions is None else {r.lower() for r in regions}
    rows = [row for row in read_rows(path, COLUMNS) if wanted is None or row.text("region").lower() in wanted]
    apart = {_key(row): _prices(row) for row in rows if not row.text("instancetype") and _is_gpu(row)}
    return [
        price
        for row in rows
        if row.text("instancetype") and (price := _machine(row, provider, apart)) is not None
    ]


def _machine(row: Row, provider: str, apart: Mapping[_Key, _Prices]) -> MachinePrice | None:
    if row.text("acceleratorname").lower().startswith("tpu"):
        return None
    if row.text("acceleratorname"):
        return _price(row, provider, row.text("acceleratorname"), _count(row), _prices(row))
    facts = facts_of(row.text("instancetype"))
    if facts is None or not apart:
        return None  # a machine without accelerators, or one that any can be put into
    sold_as = _SOLD_AS.get(row.text("instancetype"), facts.accelerator)
    found = apart.get((row.text("region"), row.text("availabilityzone"), sold_as, facts.accelerators))
    if found is None:
        return None
    host = _prices(row)
    both = _Prices(_sum(host.on_demand_usd, found.on_demand_usd), _sum(host.spot_usd, found.spot_usd))
    note = "host and accelerators are priced apart: their sum"
    return _price(row, provider, facts.accelerator, facts.accelerators, both, note)


def _price(
    row: Row, provider: str, accelerator: str, count: int, prices: _Prices, note: str = ""
) -> MachinePrice:
    memory_gib = _memory_gib(row, accelerator)
    return MachinePrice(
        provider,
        row.text("region"),
        row.text("availabilityzone") or None,
        row.text("instancetype"),
        accelerators.canonical(accelerator, memory_gib),
        count,
        memory_gib,
        prices.on_demand_usd,
        prices.spot_usd,
        note,
    )


def _prices(row: Row) -> _Prices:
    return _Prices(row.usd("price"), row.usd("spotprice"))


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _is_gpu(row: Row) -> bool:
    name = row.text("acceleratorname")
    return bool(name) and not name.lower().startswith("tpu")


def _key(row: Row) -> _Key:
    name = row.text("acceleratorname")
    if name not in _SOLD_AS.values():
        name = accelerators.canonical(name, _memory_gib(row, name))
    return row.text("region"), row.text("availabilityzone"), name, _count(row)


def _count(row: Row) -> int:
    """0: a part of one."""
    count = row.number("acceleratorcount")
    if count is None or count <= 0:
        raise row.wrong("acceleratorcount", "a number above 0")
    return int(count)


def _memory_gib(row: Row, accelerator: str) -> float | None:
    """Of one accelerator, as GpuInfo says, else as its datasheet does."""
    info = _info(row.text("gpuinfo"))
    try:
        size = float(info["Gpus"][0]["MemoryInfo"]["SizeInMiB"])
    except (KeyError, IndexError, TypeError, ValueError):
        size = 0.0
    if size > 0:
        return size / 1024 if size >= _LEAST_MIB else size
    known = accelerators.by_name(accelerator)
    return None if known is None else known.memory_gib


def _info(text: str) -> Any:
    """A literal of Python or of JSON; older files have a name there, which says nothing more."""
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None
