"""Profiles from datasheets."""

from __future__ import annotations

import dataclasses

import pytest

from stoa.errors import ConfigError
from stoa.planner.accelerators import find
from stoa.planner.profiles import Limits, ModelShape, find_model, kv_tokens_of, roofline
from stoa.planner.profiles.roofline import Efficiency
from stoa.simulator.scenario import check_profile

IDEAL = Efficiency(
    bandwidth=1.0, arithmetic=1.0, arithmetic_low=1.0, layer_s=0.0, layer_sum_s=0.0, link_gb_s=1e9, bus_gb_s=1e9,
    memory=1.0, reserve_gib=0.0,
)  # fmt: skip
SHAPE = ModelShape("m", parameters=10e9, layers=40, hidden=4096, kv_heads=8, head_dim=128)


def test_an_ideal_machine_is_its_datasheet() -> None:
    """Weights by bandwidth, rows by arithmetic, contexts by bandwidth, and the rest of memory."""
    card = find("A100-80GB")
    profile = roofline(SHAPE, card, 1, efficiency=IDEAL)
    assert profile.fixed_s == pytest.approx(20e9 / 2039e9)
    assert profile.prompt_row_s == profile.decode_row_s == pytest.approx(20e9 / 312e12)
    assert profile.context_token_s == pytest.approx(2 * 40 * 8 * 128 * 2 / 2039e9)
    assert profile.kv_tokens == int((80 * 2**30 - 20e9) / (2 * 40 * 8 * 128 * 2))


def test_two_ideal_machines_halve_the_times() -> None:
    """All but what they must tell each other."""
    one, two = (roofline(SHAPE, find("A100-80GB"), n, efficiency=IDEAL) for n in (1, 2))
    assert two.step_s(1000, 10, 10_000) == pytest.approx(one.step_s(1000, 10, 10_000) / 2, rel=1e-3)


def test_cards_without_a_fast_link_gain_less_for_prompts() -> None:
    """Their sums go over PCIe."""
    alone, pair = (roofline(SHAPE, find("L4"), n).prompt_row_s for n in (1, 2))
    linked, both = (roofline(SHAPE, find("A100-80GB"), n).prompt_row_s for n in (1, 2))
    assert both / linked < pair / alone < 1


def test_fewer_bytes_a_weight_make_room_and_steps_shorter() -> None:
    """An int4 model against bf16."""
    packed = dataclasses.replace(SHAPE, weight_bytes=0.5)
    whole, small = (roofline(s, find("A100-80GB")) for s in (SHAPE, packed))
    assert small.fixed_s < whole.fixed_s
    assert small.kv_tokens > whole.kv_tokens


def test_more_cards_than_heads_keep_keys_and_values_twice() -> None:
    """Eight cards for four heads have room for half of the tokens that they would have."""
    few = dataclasses.replace(SHAPE, kv_heads=4)
    eight = kv_tokens_of(few, find("H100"), 8)
    left_gib = 8 * (80 * 0.9 - 1) - few.weights_gib
    assert eight == pytest.approx(left_gib * 2**30 / few.kv_token_bytes / 2, rel=1e-6)


def test_a_model_too_big_is_refused_with_what_is_missing() -> None:
    """70 billion parameters on one card of 80 GiB, and how many GiB that is short."""
    with pytest.raises(
        ConfigError, match=r"llama-3-70b does not fit on 1 x H100: .* 131\.4 GiB.* 60\.4 GiB are missing"
    ):
        roofline(find_model("llama-3-70b"), find("H100"))
    with pytest.raises(ConfigError, match="0 accelerators; accepted: 1 or more"):
        roofline(SHAPE, find("H100"), 0)


def test_limits_are_those_of_the_replica_and_memory_the_least() -> None:
    """What is set, but not more context than fits."""
    card = find("H100")
    profile = roofline(SHAPE, card, limits=Limits(max_num_seqs=7, max_batch_tokens=99, kv_tokens=1000))
    assert (profile.max_num_seqs, profile.max_batch_tokens, profile.kv_tokens) == (7, 99, 1000)
    assert roofline(SHAPE, card).kv_tokens == kv_tokens_of(SHAPE, card)
    check_profile(profile)
