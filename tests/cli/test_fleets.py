"""How `stoa serve` puts a fleet together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stoa.cli.fleets import ElasticFleet, open_fleet, read_profile
from stoa.config import Settings
from stoa.engine.config import EngineConfig
from stoa.errors import ConfigError
from stoa.fleet.fleet import Fleet
from stoa.fleet.membership import Membership
from stoa.fleet.policies.router import Costs
from stoa.fleet.reports import FleetState, GatewayReport


def test_without_a_profile_reading_an_adapter_still_costs_something() -> None:
    """Else the router would see no reason to send requests where their adapter is."""
    assert Costs.of(read_profile(Settings())).adapter_s > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"profile": "/nonexistent.json"}, "profile /nonexistent.json cannot be read"),
        ({"offers": "a=1"}, "'a' is no ZONE/spot or ZONE/on_demand"),
        ({"replica_resources": "tpu=many"}, "'many' is no number"),
        ({"replica_labels": "tpu"}, "'tpu' is no NAME=VALUE"),
    ],
)
def test_what_one_engine_does_not_use_is_checked_too(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """A mistake in it is told before it matters."""
    with pytest.raises(ConfigError, match=says):
        open_fleet(Settings(**settings), "m", EngineConfig(model=str(tmp_path)))


class Full:
    """Controls of a cluster without room."""

    async def report(self, report: GatewayReport) -> FleetState:
        return FleetState(epoch="e", version=1, known=True, refusals=["a (spot): sold out"])

    async def hold_still(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_start_that_waits_for_a_machine_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, with the reason; it goes on waiting."""
    fleet = Fleet()
    membership = Membership(fleet, Full(), gateway="g", slots=1)
    served = ElasticFleet(fleet, membership, min_replicas=1, ray=None, patience_s=0.1)
    starting = asyncio.create_task(served.start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    assert capsys.readouterr().err.count("waiting for the first replica: a (spot): sold out\n") == 1
    starting.cancel()
    await served.stop(0)
