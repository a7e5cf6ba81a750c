"""The runtime: one process, one base model, many adapters. Usable alone:

    from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams

Torch is imported only when `Engine` is first touched, so that a gateway can use the request types alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, Grammar, SamplingParams, TokenEvent

if TYPE_CHECKING:
    from stoa.engine.engine import Engine

__all__ = [
    "AdapterRef",
    "Engine",
    "EngineConfig",
    "GenerationRequest",
    "Grammar",
    "SamplingParams",
    "TokenEvent",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from stoa.engine.engine import Engine

        return Engine
    raise AttributeError(name)
