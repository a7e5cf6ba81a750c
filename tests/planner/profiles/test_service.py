"""Loads of requests: closed forms where there are some, the simulator where there are none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.profiles import beside_adapters, loads_of
from stoa.simulator import core
from stoa.simulator.core import FastFleet, Setup
from stoa.simulator.traces import Requests

NEVER = math.inf
needs_core = pytest.mark.skipif(not core.available(), reason="the simulator's C library was not built")


def replica(**changes: Any) -> Profile:
    facts = {"fixed_s": 0.05, "prompt_row_s": 1e-4, "decode_row_s": 2e-4, "context_token_s": 1e-7}
    return Profile(name="test", **(facts | {"max_num_seqs": 64, "max_batch_tokens": 1024} | changes))


def load_of(
    profile: Profile, prompt: float, output: float, ttft_s: float, tpot_s: float
) -> tuple[float, float]:
    """(load_s, ttft_s) of one size on one replica."""
    load, first = loads_of([profile], prompt, output, ttft_s, tpot_s)
    return load.item(), first.item()


profiles = st.builds(
    replica,
    fixed_s=st.floats(0.005, 0.1), prompt_row_s=st.floats(1e-5, 1e-3), decode_row_s=st.floats(1e-5, 2e-3),
    context_token_s=st.floats(0, 1e-6), max_num_seqs=st.sampled_from([1, 4, 32, 256]),
    max_batch_tokens=st.sampled_from([256, 1024, 8192]), kv_tokens=st.integers(20_000, 1_000_000),
)  # fmt: skip


# -- one size


def test_one_place_serves_one_after_the_other() -> None:
    """With a single sequence at a time the load is how long a request takes alone."""
    load_s, _ = load_of(replica(max_num_seqs=1), 3000, 101, NEVER, NEVER)
    prefill_s = 3 * 0.05 + 3000 * 1e-4
    decode_s = 100 * (0.05 + 2e-4 + 1e-7 * (3000 + 101 / 2))
    assert load_s == pytest.approx(prefill_s + decode_s, rel=0.01)


def test_where_places_are_short_they_share_the_fixed_part_of_steps() -> None:
    """64 sequences of 101 tokens: each takes 101 steps of a place, and its own rows."""
    load_s, _ = load_of(replica(), 10, 101, NEVER, NEVER)
    own_s = 10 * 1e-4 + 100 * (2e-4 + 1e-7 * (10 + 101 / 2))
    assert load_s == pytest.approx(0.05 * 101 / 64 + own_s, rel=0.01)


def test_where_rows_are_short_they_share_the_fixed_part_of_steps() -> None:
    """Long prompts and short answers: 1,024 rows a step."""
    load_s, _ = load_of(replica(), 4000, 11, NEVER, NEVER)
    own_s = 4000 * 1e-4 + 10 * (2e-4 + 1e-7 * (4000 + 11 / 2))
    assert load_s == pytest.approx(0.05 * 4010 / 1024 + own_s, rel=0.01)


def test_a_target_for_the_pace_leaves_a_share_of_the_step_to_rows() -> None:
    """Steps of 60 ms have 10 ms for rows, one of them the request's own."""
    tpot_s, own_s = 0.06, 2e-4 + 1e-7 * (100 + 101 / 2)
    load_s, _ = load_of(replica(max_num_seqs=1 << 20), 100, 101, NEVER, tpot_s)
    rows_s = 100 * 1e-4 + 100 * own_s
    others_s = tpot_s - 0.05 - own_s
    assert load_s == pytest.approx(rows_s * (0.05 + others_s) / others_s, rel=1e-3)


def test_the_first_token_comes_after_the_steps_of_its_prompt() -> None:
    """On an empty replica; a fuller one takes as much longer as its target allows."""
    alone_s = 3 * 0.05 + 3000 * 1e-4
    _, late_s = load_of(replica(), 3000, 100, alone_s * 0.99, NEVER)
    assert late_s == pytest.approx(alone_s)
    load_s, first_s = load_of(replica(), 3000, 100, alone_s * 1.2, NEVER)
    assert alone_s < first_s <= alone_s * 1.2
    assert load_s > load_of(replica(), 3000, 100, NEVER, NEVER)[0]


@pytest.mark.parametrize(
    ("prompt", "output", "ttft_s", "tpot_s"),
    [(3000, 100, 0.44, NEVER), (3000, 100, NEVER, 0.0504), (30_000, 100, NEVER, NEVER), (100, 30_000, NEVER, NEVER)],
)  # fmt: skip
def test_what_is_late_alone_or_does_not_fit_has_no_load(
    prompt: int, output: int, ttft_s: float, tpot_s: float
) -> None:
    """Infinitely many replicas would not do."""
    assert load_of(replica(kv_tokens=30_000), prompt, output, ttft_s, tpot_s)[0] == math.inf


def test_a_single_token_has_no_pace() -> None:
    """Only its first token can be late."""
    assert load_of(replica(), 100, 1, 1.0, 0.001)[0] < 1


@settings(deadline=None, max_examples=60)
@given(
    profile=profiles, prompt=st.integers(1, 8000), output=st.integers(1, 2000), patience=st.floats(1.0, 20)
)
def test_stricter_targets_never_make_a_request_lighter(
    profile: Profile, prompt: int, output: int, patience: float
) -> None:
    """Neither for the first token nor for the pace."""
    ttft_s, tpot_s = 0.5 * patience, 0.03 * patience
    loose = load_of(profile, prompt, output, 2 * ttft_s, 2 * tpot_s)[0]
    assert load_of(profile, prompt, output, ttft_s, 2 * tpot_s)[0] >= loose * (1 - 1e-9)
    assert load_of(profile, prompt, output, 2 * ttft_s, tpot_s)[0] >= loose * (1 - 1e-9)


@settings(deadline=None, max_examples=20)
@given(first=profiles, second=profiles, seed=st.integers(0, 99))
def test_many_at_once_are_as_one_at_a_time(first: Profile, second: Profile, seed: int) -> None:
    """All profiles by all sizes."""
    rng = np.random.default_rng(seed)
    prompt, output, ttft = rng.integers(1, 8000, 5), rng.integers(1, 900, 5), rng.uniform(0.1, 5, 5)
    loads, firsts = loads_of([first, second], prompt, output, ttft, 0.1)
    for i, profile in enumerate((first, second)):
        for k in range(5):
            one = load_of(profile, float(prompt[k]), float(output[k]), float(ttft[k]), 0.1)
            assert (loads[i, k], firsts[i, k]) == pytest.approx(one)


# -- against the simulator


def growth(profile: Profile, rate: float, prompt: ArrayLike, output: ArrayLike, count: int = 8000) -> float:
    """Of the requests in a replica, over the second half of a Poisson stream, as a share of those that come in it."""
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1 / rate, count))
    fleet = FastFleet(Setup(profile, 1.0, room=1))
    _, end_s = fleet.record(count)
    fleet.feed(Requests(arrival_s, *(np.full(count, each, np.int32) for each in (prompt, output))))
    fleet.add(0, 0.0)
    fleet.run(1e9)
    ends_s = np.sort(end_s)

    def inside(start: float, stop: float) -> float:
        at_s = np.linspace(start, stop, 20) * arrival_s[-1]
        return float(np.mean(np.searchsorted(arrival_s, at_s) - np.searchsorted(ends_s, at_s)))

    return (inside(0.9, 1.0) - inside(0.4, 0.5)) / (count / 2)


@needs_core
@pytest.mark.parametrize(
    ("shape", "prompt", "output"),
    [
        ({}, 100, 20), ({}, 100, 200), ({}, 1500, 250), ({}, 4000, 100), ({}, 8000, 30),
        ({"max_num_seqs": 8}, 500, 150), ({"max_batch_tokens": 256}, 200, 30),
        ({"prompt_row_s": 1e-3, "decode_row_s": 2e-3}, 300, 100),
        ({"kv_tokens": 30_000}, 500, 150), ({"kv_tokens": 30_000}, 1500, 250),
        ({"kv_tokens": 60_000, "max_num_seqs": 128}, 250, 1000), ({"kv_tokens": 100_000, "fixed_s": 0.01}, 4000, 800),
    ],
)  # fmt: skip
def test_a_simulated_replica_bears_what_the_load_says_and_no_more(
    shape: dict[str, Any], prompt: int, output: int
) -> None:
    """At 0.95 of a full replica the queue is stable, at 1.08 it grows: places, rows or memory being what is short."""
    profile = replica(**shape)
    load_s, _ = load_of(profile, prompt, output, NEVER, NEVER)
    assert growth(profile, 0.95 / load_s, prompt, output) < 0.03
    assert growth(profile, 1.08 / load_s, prompt, output) > 0.03


@needs_core
@pytest.mark.parametrize("seed", range(6))
def test_loads_may_be_added(seed: int) -> None:
    """A simulated replica bears a mixture of sizes whose loads sum to 0.95."""
    rng = np.random.default_rng(seed)
    profile = replica(
        max_num_seqs=int(rng.choice([8, 64, 256])), max_batch_tokens=int(rng.choice([256, 1024, 8192])),
        kv_tokens=int(10 ** rng.uniform(4.7, 6)),
    )  # fmt: skip
    prompt, output = 10 ** rng.uniform(1, 3.9, 4), 10 ** rng.uniform(0.5, 3, 4)
    rates = rng.dirichlet(np.ones(4)) / loads_of([profile], prompt, output, NEVER, NEVER)[0][0]
    which = rng.choice(4, 8000, p=rates / rates.sum())
    assert growth(profile, 0.95 * rates.sum(), prompt[which], output[which]) < 0.03


# -- adapters


def test_adapters_take_memory_from_contexts() -> None:
    """Both lie in one pool."""
    profile = replica(kv_tokens=100_000)
    assert beside_adapters(profile, 1.0, 1 << 15).kv_tokens == 100_000 - (1 << 15)


def test_adapters_that_do_not_fit_are_refused() -> None:
    """The message says what memory there is."""
    with pytest.raises(ConfigError, match=r"4\.00 GiB do not fit; 3\.05 GiB are there"):
        beside_adapters(replica(kv_tokens=100_000), 4.0, 1 << 15)
