"""`stoa bench profile`: the fit finds what steps cost, and the report can be simulated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stoa.bench import synthetic
from stoa.bench.profile import Step, fit, observed_step, quality, run
from stoa.demo import BASE_DIR
from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.simulator.scenario import read_profile
from tests.bench.test_lora import TINY

COSTS = {"fixed_s": 4e-3, "prompt_row_s": 9e-5, "decode_row_s": 3e-4, "context_token_s": 2e-7}


def steps(costs: dict[str, float], disturbed: float = 0.0) -> list[Step]:
    """Three of each content; a share of them took ten times as long."""
    rng = np.random.default_rng(0)
    true = Profile(name="true", **costs)
    contents = [
        (p, d, int(d * c)) for p in (0, 0, 0, 7, 200, 512) for d in (0, 1, 5, 64) for c in (20, 300, 900) if p + d
    ]  # fmt: skip
    made = []
    for content in contents * 3:
        slow = 10 if rng.random() < disturbed else 1
        made.append(Step(*content, true.step_s(*content) * slow * rng.lognormal(0, 0.02)))
    return made


@pytest.mark.parametrize("disturbed", [0.0, 0.1])
def test_the_fit_finds_the_costs(disturbed: float) -> None:
    """Within a few percent, also where some steps were disturbed."""
    found = fit(steps(COSTS, disturbed))
    for name, cost in COSTS.items():
        assert found[name] == pytest.approx(cost, rel=0.06), name
    assert quality(Profile(name="found", **found), steps(COSTS))["p90_error"] < 0.06


def test_no_cost_is_below_zero() -> None:
    """A term that does not matter is zero."""
    found = fit(steps(COSTS | {"context_token_s": 0.0, "prompt_row_s": 0.0}))
    assert min(found.values()) >= 0
    assert found["decode_row_s"] == pytest.approx(3e-4, rel=0.06)


def test_a_step_tells_prompt_rows_from_decoding_ones() -> None:
    """A prompt beside two answers: its rows, two sequences, and the tokens behind them."""
    engine = Engine(
        EngineConfig(model=str(BASE_DIR), pool_bytes=1 << 24, prefix_caching=False, speculation=False)
    )
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    try:
        for name in ("a", "b"):
            engine.add_request(GenerationRequest(id=name, prompt_token_ids=[5] * 10, params=params))
        first = observed_step(engine)
        engine.add_request(GenerationRequest(id="c", prompt_token_ids=[5] * 7, params=params))
        second = observed_step(engine)
    finally:
        engine.close()
    assert (first.prompt_rows, first.decode_rows, first.context_tokens) == (20, 0, 0)
    assert (second.prompt_rows, second.decode_rows, second.context_tokens) == (7, 2, 22)


@pytest.mark.slow
def test_a_report_can_be_simulated_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is read as a profile."""
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    report = run("tiny", cache=tmp_path, max_num_seqs=4, repeats=1, pool_gib=0.01)
    (tmp_path / "profile.json").write_text(json.dumps(report))
    profile = read_profile(tmp_path / "profile.json")
    assert profile.max_num_seqs == 4
    assert profile.load_s > 0
    assert report["fit"]["steps"] > 10


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="1 or above"):
        run("demo", cache=tmp_path, repeats=0)
