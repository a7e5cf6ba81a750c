"""Profiles that `stoa bench profile` wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stoa.errors import ConfigError
from stoa.planner.profiles import read_measured

FACTS = {"name": "134m", "fixed_s": 0.01, "prompt_row_s": 1e-4, "decode_row_s": 1e-4, "kv_tokens": 4096}


def written(folder: Path, facts: dict[str, Any]) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(facts))
    return path


def test_a_measured_profile_says_on_what_and_how_exactly(tmp_path: Path) -> None:
    """The machine's name and the fit's median error stand beside it in the file."""
    beside = {"machine": {"cpu": "EPYC", "cores": 2}, "fit": {"steps": 9, "median_error": 0.03}}
    found = read_measured(written(tmp_path, FACTS | beside))
    assert found.profile.kv_tokens == 4096
    assert (found.error, found.source) == (0.03, "measured")
    assert found.said == "measured by stoa bench profile on EPYC (profile.json); 3% off on average"


def test_a_profile_by_hand_has_an_unknown_error(tmp_path: Path) -> None:
    """Notes are not needed, and odd ones do no harm."""
    for beside in ({}, {"machine": "mine"}):
        found = read_measured(written(tmp_path, FACTS | beside))
        assert math.isnan(found.error)
        assert found.said == "measured by stoa bench profile (profile.json)"


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    """With the file and what it lacks."""
    with pytest.raises(ConfigError, match="missing required field `fixed_s`"):
        read_measured(written(tmp_path, {"name": "x"}))
    with pytest.raises(ConfigError, match="fixed_s is -1"):
        read_measured(written(tmp_path, FACTS | {"fixed_s": -1.0}))
