"""The real engine on the simulator's clock: what its steps hold is what the simulator thinks they hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stoa.bench.profile import observed_step
from stoa.demo import BASE_DIR
from stoa.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
from stoa.engine.cost import StepTime
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Requests, core
from stoa.simulator.core import FastFleet, Floats, Setup

pytestmark = pytest.mark.skipif(not core.available(), reason="the simulator's C library was not built")
STEPS = Profile(
    name="clock", fixed_s=4e-3, prompt_row_s=9e-5, decode_row_s=3e-4, context_token_s=2e-7,
    max_num_seqs=8, max_batch_tokens=64,
)  # fmt: skip


@pytest.fixture(params=[0.0])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Of one project; no cache, no guesses, as the simulator has none. The parameter is the target for first tokens."""
    engine = Engine(
        EngineConfig(
            model=str(BASE_DIR), max_num_seqs=STEPS.max_num_seqs, max_batch_tokens=STEPS.max_batch_tokens,
            pool_bytes=1 << 25, prefix_caching=False, speculation=False, fairness="off", ttft_target_ms=request.param,
        )
    )  # fmt: skip
    yield engine
    engine.close()


class Known(StepTime):
    """What steps take on the simulator's clock."""

    def fit(self) -> tuple[float, float]:
        return STEPS.fixed_s, STEPS.prompt_row_s


def on_the_engine(engine: Engine, trace: Requests) -> tuple[list[float], list[float]]:
    """First-token and end times if each step took what the profile says."""
    count, now_s, coming = len(trace), 0.0, 0
    engine.scheduler.shares.clock = lambda: now_s
    engine.scheduler.times = Known()
    first_s, end_s = [0.0] * count, [0.0] * count
    while coming < count or engine.has_requests:
        if not engine.has_requests:
            now_s = max(now_s, float(trace.arrival_s[coming]))
        while coming < count and trace.arrival_s[coming] <= now_s:
            params = SamplingParams(
                max_tokens=int(trace.output_tokens[coming]), temperature=0, ignore_eos=True
            )
            prompt = [5] * int(trace.prompt_tokens[coming])
            engine.add_request(GenerationRequest(id=str(coming), prompt_token_ids=prompt, params=params))
            coming += 1
        before = {key: seqs[0] for key, seqs in engine._live.items()}
        had = {key: seq.num_output for key, seq in before.items()}
        step = observed_step(engine)
        now_s += STEPS.step_s(step.prompt_rows, step.decode_rows, step.context_tokens)
        for key, seq in before.items():
            if seq.num_output and not had[key]:
                first_s[int(key)] = now_s
            if seq.done:
                end_s[int(key)] = now_s
    return first_s, end_s


def poisson(rate: float) -> Requests:
    rng = np.random.default_rng(int(rate))
    return Requests(
        np.cumsum(rng.exponential(1 / rate, 150)),
        rng.integers(1, 200, 150).astype(np.int32),
        rng.integers(1, 40, 150).astype(np.int32),
    )


def on_the_simulator(trace: Requests, *, by_deadline: bool) -> tuple[Floats, Floats]:
    fleet = FastFleet(Setup(STEPS, 1.0, room=1, by_deadline=by_deadline))
    first_s, end_s = fleet.record(len(trace))
    fleet.feed(trace)
    fleet.add(0, 0.0)
    fleet.run(1e6)
    return first_s, end_s


@pytest.mark.parametrize("rate", [5.0, 15.0, 60.0])
def test_every_request_has_its_tokens_when_the_engine_says(engine: Engine, rate: float) -> None:
    """At low load, near saturation, and overloaded: each first token and each end, to a microsecond."""
    trace = poisson(rate)
    first_s, end_s = on_the_simulator(trace, by_deadline=False)
    real_first_s, real_end_s = on_the_engine(engine, trace)
    np.testing.assert_allclose(first_s, real_first_s, atol=1e-6)
    np.testing.assert_allclose(end_s, real_end_s, atol=1e-6)


@pytest.mark.parametrize("engine", [1000.0], indirect=True)
def test_as_many_are_in_time_as_the_engine_has(engine: Engine) -> None:
    """Overloaded, by deadline: but for a few, since its foresight is simpler; far more than by arrival."""
    trace = poisson(120.0)
    in_time = [
        np.count_nonzero(np.asarray(first_s) - trace.arrival_s <= 1.0)
        for first_s, _ in (
            on_the_engine(engine, trace),
            on_the_simulator(trace, by_deadline=True),
            on_the_simulator(trace, by_deadline=False),
        )
    ]
    assert abs(in_time[0] - in_time[1]) <= 6
    assert min(in_time[:2]) >= 1.5 * in_time[2]
