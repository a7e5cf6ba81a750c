"""Guessing ahead changes when tokens come, never which, and stops where it does not pay."""

from __future__ import annotations

import pytest

from stoa.engine.speculation import PromptLookup
from tests.engine.driving import Answer, drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder

REPEATING = [5, 9, 17, 4, 30, 8] * 5


def answers(speculation: bool, temperature: float) -> tuple[dict[tuple[str, int], Answer], int]:
    engine = make_engine(model_folder("llama"), speculation=speculation, max_batch_tokens=24)
    engine.scheduler.times.work_share = lambda work: 0.0  # type: ignore[method-assign]  # always worth it
    asked = [
        request(
            f"{i}",
            REPEATING[i:],
            adapter=None if i == 3 else adapter_folder("llama", i % 3),
            n=1 + i % 2,
            max_tokens=40,
            temperature=temperature,
            seed=i,
            stop_token_ids=(77,),
            logprobs=1 if i == 1 else None,
        )
        for i in range(6)
    ]
    return drain(engine, asked), engine.stats().accepted_draft_tokens


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0])
def test_speculation_gives_the_same_tokens(temperature: float) -> None:
    """Mixed adapters, choices, stops and log-probabilities, greedy and sampled."""
    plain, none = answers(False, temperature)
    guessed, some = answers(True, temperature)
    assert none == 0
    if temperature == 0:
        assert some > 0
    for key, answer in plain.items():
        assert guessed[key].tokens == answer.tokens
        assert guessed[key].finish == answer.finish
        assert guessed[key].logprobs == answer.logprobs


def test_lookup_proposes_what_followed_last() -> None:
    """The latest earlier occurrence of the last three tokens counts; nothing without one."""
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3], 2) == [5, 6]
    assert lookup.propose([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3, 7], 2) == []
    assert PromptLookup().propose([1, 2], 4) == []


def test_confidence_falls_with_misses_and_comes_back_with_rest() -> None:
    """A sequence that guesses badly is left alone for a while."""
    lookup = PromptLookup()
    for _ in range(10):
        lookup.judge(4, 0)
    assert lookup.hit_rate < 0.05
    for _ in range(500):
        lookup.rest()
    assert lookup.hit_rate > 0.4
