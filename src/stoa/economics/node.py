"""A machine as the ledger and the router know it."""

from __future__ import annotations

import msgspec


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What runs an engine. name, machine "": as this process's settings say."""

    name: str = ""
    machine: str = ""  # the type that prices speak of
    zone: str = "local"  # a failure domain
    market: str = "on_demand"  # or "spot"
