"""LiteLLM's list of hosted models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoa.errors import ConfigError
from stoa.planner.prices import read_litellm
from stoa.planner.problem import Tier
from tests.planner.prices.shared import PRICES, needs_data, write


def listed(folder: Path, **entry: Any) -> Path:
    """A list with one model, `x/m`, on the third line."""
    text = json.dumps({"sample_spec": {"input_cost_per_token": "what it costs"}, "x/m": entry}, indent=0)
    return write(folder, text, "prices.json")


def test_a_model_has_prices_limits_and_a_provider(tmp_path: Path) -> None:
    """USD a token, as they stand there."""
    path = listed(
        tmp_path, input_cost_per_token=1e-6, output_cost_per_token="2e-06", litellm_provider="x", max_input_tokens=8192,
        mode="chat",
    )  # fmt: skip
    found = read_litellm(path).find("x/m")
    assert (found.input_usd, found.output_usd) == (1e-6, 2e-6)
    assert (found.provider, found.max_input_tokens) == ("x", 8192)
    assert found.tiers == ()


def test_long_prompts_cost_what_their_tier_says(tmp_path: Path) -> None:
    """In either form of writing tiers; what a tier does not say costs what the model does."""
    keys = {
        "input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6, "input_cost_per_token_above_128k_tokens": 2e-6,
        "input_cost_per_token_above_200k_tokens": 3e-6, "output_cost_per_token_above_200k_tokens": 9e-6,
    }  # fmt: skip
    found = read_litellm(listed(tmp_path, **keys)).find("x/m")
    assert (found.input_usd, found.output_usd) == (1e-6, 4e-6)
    assert found.tiers == (Tier(128_000, 2e-6, 4e-6), Tier(200_000, 3e-6, 9e-6))
    tiers = [
        {"range": [32_000, 128_000], "input_cost_per_token": 5e-6},
        {"range": [0, 32_000], "input_cost_per_token": 2e-6, "output_cost_per_token": 3e-6},
    ]
    found = read_litellm(listed(tmp_path, output_cost_per_token=7e-6, tiered_pricing=tiers)).find("x/m")
    assert (found.input_usd, found.output_usd) == (2e-6, 3e-6)
    assert found.tiers == (Tier(32_000, 5e-6, 7e-6),)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"input_cost_per_token": 0, "output_cost_per_token": 0.0}, "line 5, x/m: both prices are 0"),
        ({"input_cost_per_token": -1e-6, "output_cost_per_token": 1e-6}, "input_cost_per_token is -1e-06"),
        ({"input_cost_per_token": 1e-6}, "output_cost_per_token is missing"),
        ({"input_cost_per_token": "cheap", "output_cost_per_token": 1e-6}, "input_cost_per_token is 'cheap'"),
        ({"input_cost_per_token": 3, "output_cost_per_token": 1e-6}, "input_cost_per_token is 3"),
        ({"tiered_pricing": [{"range": 7}]}, "a tier's range is 7"),
    ],
)
def test_a_price_that_cannot_be_is_refused_when_it_is_asked_for(
    tmp_path: Path, entry: dict[str, Any], says: str
) -> None:
    """File, line and model are named; the rest of the list can be used."""
    prices = read_litellm(listed(tmp_path, **entry))
    with pytest.raises(ConfigError, match=says):
        prices.find("x/m")


def test_a_free_half_is_a_price(tmp_path: Path) -> None:
    """Some providers charge for input alone."""
    path = listed(tmp_path, input_cost_per_token=1e-6, output_cost_per_token=0)
    assert read_litellm(path).find("x/m").output_usd == 0


def test_models_that_are_not_paid_by_the_token_and_the_sample_are_left_out(tmp_path: Path) -> None:
    """There is nothing to plan with; names that are near are offered."""
    by_token = {"input_cost_per_token": 1}
    models = {"sample_spec": by_token, "img": {"input_cost_per_image": 1}, "x/m-8b": by_token}
    prices = read_litellm(write(tmp_path, json.dumps(models), "p.json"))
    assert list(prices.entries) == ["x/m-8b"]
    with pytest.raises(ConfigError, match="no model 'm-8b'; near it are x/m-8b"):
        prices.find("m-8b")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{"])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    """The message says what it should be."""
    with pytest.raises(ConfigError, match="a JSON object of models"):
        read_litellm(write(tmp_path, text, "p.json"))


class TestRealList:
    """What lies in the shared data folder."""

    pytestmark = needs_data

    def test_every_model_has_a_price(self) -> None:
        """Of 1,194 from eleven providers."""
        prices = read_litellm(PRICES / "llm_api_prices.json")
        found = [prices.find(name) for name in prices.entries]
        assert (len(found), len({p.provider for p in found})) == (1194, 11)
        assert prices.find("groq/openai/gpt-oss-20b").input_usd == 7.5e-8
