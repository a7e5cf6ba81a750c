"""How `stoa serve` puts a fleet together."""

from __future__ import annotations

from stoa.cli.fleets import read_profile
from stoa.config import Settings
from stoa.fleet.policies.router import Costs


def test_without_a_profile_reading_an_adapter_still_costs_something() -> None:
    """Else the router would see no reason to send requests where their adapter is."""
    assert Costs.of(read_profile(Settings())).adapter_s > 0
