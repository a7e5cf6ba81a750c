"""Profiles that `stoa bench profile` has measured on the machine itself."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from stoa.planner.profiles.fitted import Fitted
from stoa.simulator.scenario import read_profile


class _Quality(msgspec.Struct):
    median_error: float = math.nan


class _Machine(msgspec.Struct):
    cpu: str = ""
    gpu: str | None = None


class _Beside(msgspec.Struct):
    """What stands in the file beside the profile."""

    fit: _Quality = msgspec.field(default_factory=_Quality)
    machine: _Machine = msgspec.field(default_factory=_Machine)


def read_measured(path: Path) -> Fitted:
    """ConfigError says what is wrong with the file. A file without `fit` (written by hand) has an unknown error."""
    profile = read_profile(path)
    try:
        beside = msgspec.json.decode(path.read_bytes(), type=_Beside)
    except msgspec.ValidationError:  # the profile itself is right; these are notes
        beside = _Beside()
    machine = beside.machine.gpu or beside.machine.cpu
    return Fitted(
        profile, beside.fit.median_error, "measured",
        f"measured by stoa bench profile{f' on {machine}' if machine else ''} ({path.name})",
    )  # fmt: skip
