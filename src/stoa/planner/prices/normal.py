"""What machines and hosted models cost, whoever said it and in whichever layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stoa.errors import ConfigError
from stoa.planner.problem import Tier


@dataclass(frozen=True, slots=True)
class MachinePrice:
    """One type of machine in one zone, or in a whole region. Prices are USD an hour; None: not sold that way.
    `accelerators` 0: the source does not say which it has, or it has none of its own (a part of one, say)."""

    provider: str
    region: str
    zone: str | None
    machine: str
    accelerator: str
    accelerators: int
    accelerator_memory_gib: float | None  # of each
    on_demand_usd: float | None
    spot_usd: float | None
    note: str = ""  # how prices were reckoned, for people
    spot_note: str = ""


@dataclass(frozen=True, slots=True)
class ApiPrice:
    """USD a token of a hosted model. `tiers` by length of prompt, the shortest first."""

    name: str
    provider: str
    input_usd: float
    output_usd: float
    max_input_tokens: int | None = None
    tiers: tuple[Tier, ...] = ()


def machine_at(
    prices: Sequence[MachinePrice], machine: str, region: str | None = None, zone: str | None = None
) -> MachinePrice:
    """The price of a machine there. Of several zones the cheapest one counts, for each way of buying on its own.
    ConfigError says which machines, regions or zones there are."""
    same = [p for p in prices if p.machine.lower() == machine.lower()]
    _need(same, "machine", machine, (p.machine for p in prices))
    found = [p for p in same if region is None or p.region.lower() == region.lower()]
    _need(found, f"region for {machine}", str(region), (p.region for p in same))
    if zone is not None:
        zoned = [p for p in found if p.zone is not None and p.zone.lower() == zone.lower()]
        _need(zoned, f"zone for {machine}", zone, (p.zone or "" for p in found))
        found = zoned
    regions = sorted({p.region for p in found})
    if len(regions) > 1:
        raise ConfigError(
            f"{machine} is sold in several regions; name one of {_listed(regions)}", param="region"
        )
    return _cheapest(found)


def _cheapest(found: Sequence[MachinePrice]) -> MachinePrice:
    if len(found) == 1:
        return found[0]
    on_demand = min((p.on_demand_usd for p in found if p.on_demand_usd is not None), default=None)
    spot = min((p.spot_usd for p in found if p.spot_usd is not None), default=None)
    note = f"the cheapest of {len(found)} zones"
    return replace(found[0], zone=None, on_demand_usd=on_demand, spot_usd=spot, note=note)


def _need(found: Sequence[MachinePrice], what: str, wanted: str, known: Iterable[str]) -> None:
    if not found:
        raise ConfigError(
            f"there is no {what} {wanted!r} among the prices; there is {_listed(known)}", param=what
        )


def _listed(names: Iterable[str]) -> str:
    every = sorted(set(names) - {""})
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "") or "none"
