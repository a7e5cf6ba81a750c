"""Remotes of the settings, as replicas of the fleet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stoa.fleet.remote import Calls, RemoteConfig, RemoteReplica, api_key
from stoa.fleet.remote.allowance import Allowance

if TYPE_CHECKING:
    from stoa.cli.wiring import Tenancy
    from stoa.engine.tokenizer import Tokenizer


def open_remote(config: RemoteConfig, model_id: str, tokenizer: Tokenizer, tenancy: Tenancy) -> RemoteReplica:
    """Not started yet."""
    return RemoteReplica(
        config,
        model_id,
        calls=Calls(config, api_key(config)),
        tokenizer=tokenizer,
        allowance=Allowance(config, tenancy.meters, time.time, tenancy.purchases.spent),
        pricing=lambda model, at_s: tenancy.api_prices.of(model, at_s, config.price),
        buy=tenancy.purchases.add,
    )
