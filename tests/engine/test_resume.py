"""A request begun on one engine goes on on another, with the tokens it would have had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa import demo
from stoa.engine import Engine, GenerationRequest
from stoa.engine.request import Grammar, TokenEvent
from stoa.errors import InvalidRequest
from tests.engine.driving import Answer, collect, drain, make_engine, request

DEMO = Path(demo.__file__).parent
SCHEMA = Grammar(
    kind="json_schema", source='{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]}'
)
CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "n": 3},
    {"temperature": 1.2, "n": 2, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 2},
    {"temperature": 1.5, "stop": ("e", "ab"), "min_tokens": 6},
    {"temperature": 1.0, "grammar": SCHEMA, "ignore_eos": False, "max_tokens": 40},
    {"adapter": DEMO / "adapters" / "caesar", "temperature": 1.0},
]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    base = DEMO / "base"
    pair = make_engine(base), make_engine(base, max_batch_tokens=7, prefix_caching=False)
    yield pair
    for engine in pair:
        engine.close()


def begin(engine: Engine, asked: GenerationRequest, steps: int) -> dict[tuple[str, int], Answer]:
    """What it has said after so many events; then it is gone."""
    engine.add_request(asked)
    answers: dict[tuple[str, int], Answer] = {}
    seen = 0
    while engine.has_requests and seen < steps:
        events = engine.step()
        collect(events, answers)
        seen += len(events)
        if not events:
            engine.wakeup.wait(0.01)
    engine.cancel(asked.id)
    return answers


@settings(max_examples=50, deadline=None)
@given(case=st.sampled_from(CASES), cut=st.integers(0, 45), seed=st.integers(0, 5))
def test_a_stream_goes_on_elsewhere(
    engines: tuple[Engine, Engine], case: dict[str, Any], cut: int, seed: int
) -> None:
    """Whatever was asked and wherever it is cut: tokens, text, log-probabilities and ends are those of one engine."""
    first, second = engines
    asked = request("r", [40 + seed, 50, 60, 61, 62], **{"max_tokens": 24, "seed": seed, **case})
    whole = drain(first, [asked])
    told = begin(first, asked, cut)
    open_choices = [i for i in range(asked.n) if told.get(("r", i), Answer()).finish is None]
    if not open_choices:
        return
    so_far = [told.get(("r", i), Answer()).tokens if i in open_choices else None for i in range(asked.n)]
    rest = drain(second, [msgspec.structs.replace(asked, so_far=so_far)])
    assert {index for _, index in rest} == set(open_choices)
    for key, answer in whole.items():
        before, after = told.get(key, Answer()), rest.get(key, Answer())
        assert before.tokens + after.tokens == answer.tokens
        assert before.text + after.text == answer.text
        assert before.logprobs + after.logprobs == answer.logprobs
        assert (after.finish or before.finish) == answer.finish
        last: TokenEvent | None = after.last or before.last
        assert last is not None
        assert last.completion_tokens == len(answer.tokens)
    assert not first.has_requests
    assert not second.has_requests


@pytest.mark.parametrize(
    "so_far", [[[1]], [[1], None, None], [None, None], [[1] * 8, [2]], [[1], [10**6]], [[-1], [2]]]
)
def test_so_far_must_fit_the_request(engines: tuple[Engine, Engine], so_far: Any) -> None:
    """An entry for each choice, of known tokens, and something left to say."""
    asked = msgspec.structs.replace(request("r", [40, 50], n=2, max_tokens=8), so_far=so_far)
    with pytest.raises(InvalidRequest) as caught:
        engines[0].add_request(asked)
    assert caught.value.param == "so_far"
    assert not engines[0].has_requests
