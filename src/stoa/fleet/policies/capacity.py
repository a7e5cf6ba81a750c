"""How much of a replica a demand takes, from the learned profile of its steps.

A replica with n sequences decodes one token of each in a step of
    s = fixed + n·decode_row + context·context_token + prompt rows·prompt_row   seconds.
Requests that come at rate r with P prompt and O output tokens bring r·s·P prompt rows to each step, and n = r·s·O by
Little's law. Solved for s: s = fixed / (1 - r·w), with w = P·prompt_row + O·(decode_row + L·context_token) and
L = P + O/2 the mean context. So r can rise until one of two limits is met:
    (S) sequences   n <= N, N the least of max_num_seqs and what fits into kv_tokens:  r·(O·fixed/N + w) <= 1
    (R) rows        s·r·(P + O) <= B, B = max_batch_tokens:                            r·((P + O)·fixed/B + w) <= 1
Both are linear in tokens per second: the load of a demand in replicas is a price per prompt token and one per output
token. It is a measure of work, not of waiting; who waits is for `rehearsal` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoa.fleet.policies.facts import Demand
from stoa.fleet.policies.profile import Profile


@dataclass(frozen=True, slots=True)
class Mix:
    """Mean lengths of recent requests, in tokens."""

    prompt: float = 1.0
    output: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of one full replica."""

    prompt_token_s: float
    output_token_s: float

    def of(self, prompt_tokens: float, output_tokens: float) -> float:
        return self.prompt_token_s * prompt_tokens + self.output_token_s * output_tokens


def mean_lengths(demand: Demand, bins: int) -> Mix:
    """Of the newest `bins` that requests came in. Output is what was generated in this time, which lags behind what was
    asked for while requests wait."""
    requests = sum(demand.requests[-bins:])
    if requests < 1:
        return Mix()
    prompt, output = sum(demand.prompt_tokens[-bins:]), sum(demand.output_tokens[-bins:])
    return Mix(max(1.0, prompt / requests), max(1.0, output / requests))


def work(profile: Profile, mix: Mix) -> Work:
    """The price of tokens in a replica as full as it can be with requests like these."""
    context = mix.prompt + mix.output / 2
    sequences = max(1.0, min(profile.max_num_seqs, profile.kv_tokens / context))
    decode_s = profile.decode_row_s + context * profile.context_token_s
    by_sequences = mix.output * profile.fixed_s / sequences
    by_rows = (mix.prompt + mix.output) * profile.fixed_s / profile.max_batch_tokens
    if by_sequences >= by_rows:
        return Work(profile.prompt_row_s, decode_s + profile.fixed_s / sequences)
    row_s = profile.fixed_s / profile.max_batch_tokens
    return Work(profile.prompt_row_s + row_s, decode_s + row_s)


def first_token_s(profile: Profile, mix: Mix) -> float:
    """From sending a request to a replica that is busy but has no queue, to its first token: the rest of the step under way
    (half of one), then the steps that its prompt takes."""
    decoding = min(profile.max_num_seqs, profile.max_batch_tokens) / 2
    room = max(1.0, profile.max_batch_tokens - decoding)
    steps = max(1.0, mix.prompt / room)
    context = decoding * (mix.prompt + mix.output / 2)
    rows = min(mix.prompt, room)
    step_s = profile.step_s(rows, decoding, min(context, profile.kv_tokens))
    return (0.5 + steps) * step_s
