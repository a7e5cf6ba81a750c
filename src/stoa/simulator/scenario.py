"""Profiles and zones as files say them."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.simulator.market import Zone
from stoa.simulator.spot import read_spot


class ZoneEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spot`: a file of spot capacity, relative to the file of zones."""

    name: str
    on_demand_hourly: float | None = None
    spot_hourly: float | None = None
    spot: str | None = None
    spot_offset_s: float = 0.0
    spot_scale: int = 1
    spot_inverted: bool = False
    startup_s: float = 120.0
    on_demand_capacity: int | None = None


def read_zones(path: Path) -> list[Zone]:
    """A JSON list of `ZoneEntry`. ConfigError says what is wrong."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[ZoneEntry])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="zones") from None
    except msgspec.MsgspecError as error:
        accepted = ", ".join(ZoneEntry.__struct_fields__)
        raise ConfigError(
            f"{path}: {error}; accepted: a list of objects with {accepted}", param="zones"
        ) from None
    return check_zones([_zone(entry, path.parent) for entry in entries])


def _zone(entry: ZoneEntry, folder: Path) -> Zone:
    spot = None
    if entry.spot is not None:
        spot = read_spot(
            folder / entry.spot,
            offset_s=entry.spot_offset_s, scale=entry.spot_scale, inverted=entry.spot_inverted,
        )  # fmt: skip
    return Zone(
        entry.name, entry.on_demand_hourly, entry.spot_hourly, spot, entry.startup_s, entry.on_demand_capacity
    )


def check_zones(zones: list[Zone]) -> list[Zone]:
    """ConfigError for zones that share a name, offer nothing, or have impossible numbers."""
    names = [zone.name for zone in zones]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise ConfigError(f"zones share the name {', '.join(double)}", param="zones")
    if not any(zone.offers() for zone in zones):
        raise ConfigError("no zone has a price: machines can be had nowhere", param="zones")
    for zone in zones:
        numbers = [zone.startup_s, zone.on_demand_hourly or 0.0, zone.spot_hourly or 0.0]
        if not all(math.isfinite(n) and n >= 0 for n in numbers) or (zone.on_demand_capacity or 0) < 0:
            raise ConfigError(
                f"prices, startup_s and on_demand_capacity of zone {zone.name!r} must be 0 or above",
                param="zones",
            )
    return zones


def read_profile(path: Path) -> Profile:
    """JSON as `stoa bench profile` writes it. ConfigError says what is wrong."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="profile") from None
    except msgspec.MsgspecError as error:
        accepted = ", ".join(Profile.__struct_fields__)
        raise ConfigError(f"{path}: {error}; accepted: an object with {accepted}", param="profile") from None
    return check_profile(profile)


def check_profile(profile: Profile) -> Profile:
    """ConfigError for one that no replica can have."""
    seconds = (
        "fixed_s", "prompt_row_s", "decode_row_s", "context_token_s", "load_s", "adapter_load_s",
    )  # fmt: skip
    for name in seconds:
        value = getattr(profile, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(
                f"profile {profile.name}: {name} is {value}; accepted: 0 or above", param="profile"
            )
    for name in ("max_num_seqs", "max_batch_tokens", "kv_tokens"):
        if not 1 <= getattr(profile, name) < 1 << (62 if name == "kv_tokens" else 30):
            raise ConfigError(f"profile {profile.name}: {name} must be 1 or above", param="profile")
    if profile.step_s(1, 0) <= 0 or profile.step_s(0, 1) <= 0:
        raise ConfigError(f"profile {profile.name}: a step takes no time", param="profile")
    return profile
