"""Where queueing theory has a formula, the simulator finds what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from stoa.simulator import core
from stoa.simulator.core import FastFleet, Setup
from stoa.simulator.traces import Requests
from tests.simulator.worlds import profile

pytestmark = pytest.mark.skipif(not core.available(), reason="the simulator's C library was not built")
STEP_S = 1e-3  # short beside the service times, which are whole numbers of steps
N = 1_000_000


def run(rate: float, output: NDArray[np.int64], seed: int, **shape: float) -> tuple[float, float]:
    """Mean (wait before service, time in the system) of Poisson arrivals at one replica."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, len(output)))
    fleet = FastFleet(Setup(profile(**({"fixed_s": STEP_S} | shape)), 1.0, room=1))
    first_s, end_s = fleet.record(len(output))
    fleet.feed(Requests(arrival_s, np.ones(len(output), np.int32), output.astype(np.int32)))
    fleet.add(0, 0.0)
    fleet.run(1e9)
    return float((first_s - arrival_s).mean()) - shape.get("fixed_s", STEP_S), float(
        (end_s - arrival_s).mean()
    )


def geometric(mean: float, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).geometric(1 / mean, N)


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits (Erlang 1917), `load` in servers."""
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    return top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (4, 3.0), (16, 13.0)])
def test_many_places_with_exponential_service_wait_as_m_m_c(servers: int, load: float) -> None:
    """Mean wait is C(c, a) / (c·mu - lambda)."""
    wait_s, _ = run(load, geometric(1000, seed=servers), seed=7, max_num_seqs=servers)
    assert wait_s == pytest.approx(erlang_c(servers, load) / (servers - load), rel=0.03, abs=2 * STEP_S)


@pytest.mark.parametrize("kind", ["constant", "two kinds"])
def test_one_place_with_general_service_waits_as_m_g_1(kind: str) -> None:
    """Mean wait is lambda·E[S²] / 2(1 - rho) (Pollaczek, Khinchine)."""
    rng = np.random.default_rng(3)
    output = np.full(N, 1000) if kind == "constant" else np.where(rng.random(N) < 0.1, 6000, 400)
    service_s = output * STEP_S
    rate = 0.7 / service_s.mean()
    wait_s, _ = run(rate, output, seed=11, max_num_seqs=1)
    assert wait_s == pytest.approx(rate * (service_s**2).mean() / 2 / (1 - 0.7), rel=0.03)


@pytest.mark.parametrize("kind", ["geometric", "two kinds"])
def test_a_step_that_costs_by_the_row_shares_the_processor(kind: str) -> None:
    """Mean time in the system is E[S] / (1 - rho) for any distribution (M/G/1 with processor sharing, Kleinrock)."""
    rng = np.random.default_rng(4)
    output = geometric(1000, seed=1) if kind == "geometric" else np.where(rng.random(N) < 0.1, 6000, 400)
    mean_s = output.mean() * STEP_S
    _, time_s = run(
        0.7 / mean_s, output, seed=13,
        fixed_s=0.0, decode_row_s=STEP_S, max_num_seqs=1 << 20, max_batch_tokens=1 << 21,
    )  # fmt: skip
    assert time_s == pytest.approx(mean_s / (1 - 0.7), rel=0.03)
