"""Endpoints that speak OpenAI's API as replicas of the fleet."""

from __future__ import annotations

from stoa.fleet.remote.calls import Calls
from stoa.fleet.remote.replica import RemoteReplica
from stoa.fleet.remote.settings import RemoteConfig, api_key, read_remotes

__all__ = ["Calls", "RemoteConfig", "RemoteReplica", "api_key", "read_remotes"]
