"""Guessing ahead changes when tokens come, never which, and stops where it does not pay."""

from __future__ import annotations

import pytest

from stoa.engine.speculation import PromptLookup, StepCost
from tests.engine.driving import Answer, drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder

REPEATING = [5, 9, 17, 4, 30, 8] * 5


def answers(speculation: bool, temperature: float) -> tuple[dict[tuple[str, int], Answer], int]:
    engine = make_engine(model_folder("llama"), speculation=speculation, max_batch_tokens=24)
    engine.speculator.cost.rows_share = lambda rows: 0.0  # type: ignore[method-assign]  # always worth it
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


def test_step_cost_tells_what_rows_cost() -> None:
    """A step of 10 ms and 1 ms a row: eight rows are 8/18 of it; free rows cost nothing."""
    cost, free = StepCost(), StepCost()
    for rows in (1, 8, 200, 3, 8, 8, 64) * 10:
        cost.observe(rows, 0, 0.010 + 0.001 * rows)
        free.observe(rows, 0, 0.010)
    assert cost.rows_share(8) == pytest.approx(8 / 18, rel=1e-3)
    assert free.rows_share(8) == pytest.approx(0, abs=1e-6)


def test_the_output_head_counts_for_sampled_rows_only() -> None:
    """Prompts tell what a row costs; a row that is sampled costs the head besides."""
    cost = StepCost(head=0.5)
    for rows, sampled in ((8, 8), (100, 1), (40, 8), (300, 2)) * 20:
        cost.observe(rows, sampled, 0.012 + 0.001 * (rows + 0.5 * sampled))
    assert cost.rows_share(8) == pytest.approx(0.5, rel=1e-3)


def test_before_rows_have_varied_a_prior_stands_in() -> None:
    """One row alone is cheap to add to, a large batch is not."""
    cost = StepCost()
    for _ in range(50):
        cost.observe(4, 4, 0.01)
    assert cost.rows_share(1) < 0.1 < 0.6 < cost.rows_share(64)
