"""Datasheets of accelerators, and their names."""

from __future__ import annotations

import pytest

from stoa.errors import ConfigError
from stoa.planner.accelerators import ACCELERATORS, canonical, find


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("A100-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB", "A100-80GB"),
        ("nvidia-a100-80gb", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100", "A100-40GB"),
        ("nvidia-tesla-a100", "A100-40GB"),
        ("nvidia-l4", "L4"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100-mega", "H100"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_an_accelerator_is_found_by_what_clouds_and_drivers_call_it(said: str, name: str) -> None:
    """In any case, with or without its maker."""
    assert find(said).name == name


def test_an_unknown_one_is_refused_with_those_that_are_known() -> None:
    """The message lists them."""
    with pytest.raises(ConfigError, match=r"'TPU v5'.*T4, L4, V100"):
        find("TPU v5")


def test_names_are_each_ones_own() -> None:
    """No alias leads to two."""
    for accelerator in ACCELERATORS:
        for name in (accelerator.name, *accelerator.aliases):
            assert find(name) is accelerator


@pytest.mark.parametrize(
    ("said", "memory_gib", "name"),
    [
        ("A100", 79.6, "A100-80GB"),
        ("A100", None, "A100-40GB"),
        ("v100", 32.0, "V100-32GB"),
        ("l4", 22.35, "L4"),
        ("k80", 12.0, "K80"),
    ],
)
def test_memory_tells_apart_what_is_called_alike(said: str, memory_gib: float | None, name: str) -> None:
    """What has no datasheet here keeps its name."""
    assert canonical(said, memory_gib) == name
