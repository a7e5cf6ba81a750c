"""Runs requests through an engine and gathers what came back."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoa.engine import AdapterRef, Engine, EngineConfig, GenerationRequest, SamplingParams, TokenEvent
from stoa.engine.adapters.peft import read_adapter
from stoa.engine.model.config import read_model_config
from tests.engine.tiny import VARIANTS, model_folder


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    last: TokenEvent | None = None
    logprobs: list[Any] = field(default_factory=list)


def make_engine(folder: Path, **overrides: Any) -> Engine:
    settings = {"model": str(folder), "dtype": "fp32", "pool_bytes": 1 << 26, "host_adapter_bytes": 1 << 26}
    return Engine(EngineConfig(**(settings | overrides)))


@functools.cache
def ref(path: Path) -> AdapterRef:
    """Of an adapter folder of `tiny`; others get an id of their own."""
    name = path.name.partition("-adapter-")[0]
    if name not in VARIANTS:
        return AdapterRef(id=path.name, path=str(path))
    spec = read_adapter(path, read_model_config(model_folder(name)), max_rank=512)
    return AdapterRef(id=spec.id, path=str(path))


def request(
    id: str,
    prompt: list[int],
    *,
    adapter: Path | None = None,
    n: int = 1,
    project: str = "default",
    **params: Any,
) -> GenerationRequest:
    params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    return GenerationRequest(
        id=id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        adapter=ref(adapter) if adapter else None,
        n=n,
        project=project,
    )


def drain(engine: Engine, requests: Iterable[GenerationRequest] = ()) -> dict[tuple[str, int], Answer]:
    """Adds the requests, steps until nothing is left, and returns the answers by (request, choice)."""
    for item in requests:
        engine.add_request(item)
    answers: dict[tuple[str, int], Answer] = {}
    while engine.has_requests:
        collect(engine.step(), answers)
        if engine.idle and engine.has_requests:
            assert engine.wakeup.wait(20), "the engine stalled"
            engine.wakeup.clear()
    return answers


def collect(events: list[TokenEvent], answers: dict[tuple[str, int], Answer]) -> None:
    for event in events:
        answer = answers.setdefault((event.request_id, event.index), Answer())
        assert answer.finish is None, "an event after the last one"
        answer.tokens += event.token_ids
        answer.text += event.text
        answer.logprobs += event.logprobs or []
        answer.finish = event.finish_reason
        answer.last = event


def assert_all_returned(engine: Engine) -> None:
    """No page is held by anybody once nothing runs and nothing unused is kept."""
    assert engine.blocks.num_held == 0
    for resident in engine.adapters._resident.values():
        if resident.laying_out is not None:  # a cancelled request may leave its adapter on the way
            resident.laying_out.result(20)
    while engine.scheduler._evict_unused():
        pass
    assert engine.pool.num_free == engine.pool.num_pages
