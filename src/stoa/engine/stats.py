"""A snapshot of the engine that anybody may read."""

from __future__ import annotations

import msgspec


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """What the engine is doing, for /metrics and routers. Totals count since the engine process started."""

    running: int = 0
    waiting: int = 0
    waiting_for_adapter: int = 0
    kv_usage: float = 0.0  # share of pool pages held by sequences, 0 … 1
    pool_pages: int = 0
    page_bytes: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    adapters_resident: int = 0
    adapters_host: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    running_adapters: list[str] = []
    waiting_adapters: list[str] = []
    held_adapters: list[str] = []  # in the pool or in host memory
