"""Price lists of single clouds, as public tools keep them: AWS with its spot advisor, GCP, Azure. All are USD an hour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner import accelerators
from stoa.planner.prices.machine_types import facts_of
from stoa.planner.prices.normal import MachinePrice
from stoa.planner.prices.rows import Row, read_header, read_rows

AWS_PRICE = re.compile(r"ondemand_usd_per_h_([a-z0-9_]+)")  # the column's name says for which region
AWS_COLUMNS = ("instance_type", "gpu_name", "gpu_count", "gpu_memory_mib")
ADVISOR_COLUMNS = ("region", "instance_type", "savings_over_ondemand_pct")
GCP_COLUMNS = ("region", "machine_type", "ondemand_usd_per_h", "spot_usd_per_h")
AZURE_COLUMNS = ("region", "vm_size", "ondemand_usd_per_h")


def read_aws(path: Path, advisor: Path | None = None) -> list[MachinePrice]:
    """Machines with GPUs, at the prices of the one region that the price column's name says.

    The spot advisor tells by how much spot machines were cheaper, so spot price = on-demand price x (1 - saving); the
    `spot_note` of each result says so. Its lines of other regions say nothing about this one's prices."""
    columns = [name for name in read_header(path) if AWS_PRICE.fullmatch(name)]
    if len(columns) != 1:
        raise ConfigError(
            f"{path}, line 1: {len(columns)} price columns; accepted: one, named ondemand_usd_per_h_<region>",
            param="prices",
        )
    match = AWS_PRICE.fullmatch(columns[0])
    assert match is not None
    region = match[1].replace("_", "-")
    savings = {} if advisor is None else _savings(advisor, region)
    return [_aws(row, columns[0], region, savings) for row in read_rows(path, AWS_COLUMNS)]


def _aws(row: Row, column: str, region: str, savings: Mapping[str, tuple[float, str]]) -> MachinePrice:
    machine, on_demand = row.text("instance_type"), row.usd(column)
    memory_mib = row.number("gpu_memory_mib")
    memory_gib = None if not memory_mib else memory_mib / 1024
    spot, note = None, ""
    if on_demand is not None and machine in savings:
        saving, label = savings[machine]
        spot = on_demand * (1 - saving)
        note = f"on-demand x (1 - {saving:.2f}), the spot advisor's saving{label}"
    return MachinePrice(
        "aws",
        region,
        None,
        machine,
        accelerators.canonical(row.text("gpu_name"), memory_gib),
        int(row.number("gpu_count") or 0),
        memory_gib,
        on_demand,
        spot,
        spot_note=note,
    )


def _savings(path: Path, region: str) -> dict[str, tuple[float, str]]:
    """Saving and the advisor's words on interruptions, by machine of the region."""
    found = {}
    for row in read_rows(path, ADVISOR_COLUMNS):
        if row.text("region") != region:
            continue
        percent = row.number("savings_over_ondemand_pct")
        if percent is None or percent >= 100:
            raise row.wrong("savings_over_ondemand_pct", "a number of percent below 100")
        label = row.text("interruption_label")
        found[row.text("instance_type")] = (percent / 100, f"; interrupted {label} a month" if label else "")
    return found


def read_gcp(path: Path) -> list[MachinePrice]:
    """Machine types with GPUs by region. Which GPUs they have is what `machine_types` knows."""
    return [
        _plain(row, "gcp", "machine_type", row.usd("spot_usd_per_h")) for row in read_rows(path, GCP_COLUMNS)
    ]


def read_azure(path: Path) -> list[MachinePrice]:
    """Machine types with GPUs by region, on demand only. Which GPUs they have is what `machine_types` knows."""
    return [_plain(row, "azure", "vm_size", None) for row in read_rows(path, AZURE_COLUMNS)]


def _plain(row: Row, provider: str, column: str, spot_usd: float | None) -> MachinePrice:
    machine = row.text(column)
    facts = facts_of(machine)
    return MachinePrice(
        provider,
        row.text("region"),
        None,
        machine,
        facts.accelerator if facts else "",
        facts.accelerators if facts else 0,
        accelerators.find(facts.accelerator).memory_gib if facts else None,
        row.usd("ondemand_usd_per_h"),
        spot_usd,
    )
