"""Price lists of machines and of hosted models, from others' layouts into one form.

normal.py         MachinePrice, ApiPrice
skypilot.py       SkyPilot's catalogs of machines
tables.py         lists of AWS, GCP, Azure
litellm.py        LiteLLM's list of hosted models
machine_types.py  which accelerators a type of machine has, where a list does not say
rows.py           CSV files line by line
"""

from __future__ import annotations

from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner.prices import skypilot, tables
from stoa.planner.prices.litellm import ApiPrices, read_litellm
from stoa.planner.prices.normal import ApiPrice, MachinePrice, machine_at
from stoa.planner.prices.rows import read_header
from stoa.planner.prices.skypilot import read_skypilot
from stoa.planner.prices.tables import read_aws, read_azure, read_gcp

__all__ = [
    "ApiPrice", "ApiPrices", "MachinePrice", "machine_at", "read_aws", "read_azure", "read_gcp", "read_litellm",
    "read_machines", "read_skypilot",
]  # fmt: skip


def read_machines(
    path: Path, *, spot_advisor: Path | None = None, provider: str | None = None, region: str | None = None
) -> list[MachinePrice]:
    """Prices of a file in any of the layouts above, which its columns tell. ConfigError lists them if it is none."""
    columns = set(read_header(path))
    if spot_advisor is not None and not set(tables.AWS_COLUMNS) <= columns:
        raise ConfigError(
            f"{path} is no AWS price list; only those go with a spot advisor", param="spot_advisor"
        )
    if set(skypilot.COLUMNS) <= columns:
        return read_skypilot(path, provider, regions=None if region is None else {region})
    if set(tables.AWS_COLUMNS) <= columns:
        return read_aws(path, spot_advisor)
    if set(tables.GCP_COLUMNS) <= columns:
        return read_gcp(path)
    if set(tables.AZURE_COLUMNS) <= columns:
        return read_azure(path)
    layouts = {"SkyPilot": skypilot.COLUMNS, "AWS": tables.AWS_COLUMNS, "GCP": tables.GCP_COLUMNS}
    layouts["Azure"] = tables.AZURE_COLUMNS
    accepted = "; ".join(f"{name}: {', '.join(names)}" for name, names in layouts.items())
    raise ConfigError(
        f"{path}, line 1: the columns are those of no layout; accepted: {accepted}", param="prices"
    )
