"""What a demand takes of a replica, against the step model it was solved from."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.policies.capacity import Mix, first_token_s, mean_lengths, work
from stoa.fleet.policies.facts import Demand
from stoa.fleet.policies.profile import Profile

PROFILE = Profile(
    name="p", fixed_s=0.03, prompt_row_s=2e-4, decode_row_s=3e-4, context_token_s=1e-8, max_num_seqs=64,
    max_batch_tokens=512, kv_tokens=100_000,
)  # fmt: skip


@given(st.floats(1, 4000), st.floats(1, 2000))
def test_a_full_replica_meets_one_of_its_limits_and_no_other_is_exceeded(
    prompt: float, output: float
) -> None:
    """At a load of one, the step that the rate brings about has all sequences or all rows, whichever comes first."""
    mix = Mix(prompt, output)
    rate = 1.0 / work(PROFILE, mix).of(prompt, output)
    context = prompt + output / 2
    most = max(1.0, min(PROFILE.max_num_seqs, PROFILE.kv_tokens / context))
    share = rate * (
        prompt * PROFILE.prompt_row_s + output * (PROFILE.decode_row_s + context * PROFILE.context_token_s)
    )
    step_s = PROFILE.fixed_s / (1.0 - share)
    sequences, rows = rate * step_s * output, rate * step_s * (prompt + output)
    assert max(sequences / most, rows / PROFILE.max_batch_tokens) < 1.0 + 1e-6
    assert math.isclose(max(sequences / most, rows / PROFILE.max_batch_tokens), 1.0, rel_tol=1e-6)


def test_lengths_are_means_of_the_newest_bins() -> None:
    """Bins before those asked for do not count, and without requests a length is one token."""
    demand = Demand(10.0, [9, 1, 1], [9000, 100, 300], [9000, 20, 40], [0, 0, 0], [0, 0, 0])
    assert mean_lengths(demand, 2) == Mix(200.0, 30.0)
    assert mean_lengths(Demand(10.0, [], [], [], [], []), 2) == Mix()


@given(st.floats(1, 4000), st.floats(1, 4000))
def test_longer_prompts_take_longer_to_their_first_token(one: float, other: float) -> None:
    """The time to a first token grows with the prompt."""
    short, long = sorted((one, other))
    assert first_token_s(PROFILE, Mix(short, 10)) <= first_token_s(PROFILE, Mix(long, 10)) + 1e-12
