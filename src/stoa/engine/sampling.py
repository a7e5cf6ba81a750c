"""From logits to tokens.

Randomness is counter-based: the uniform number for a token is a function of (seed, position) alone, so a
sequence that was preempted or moved continues with the very tokens it would have had, whatever its company.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stoa.engine.kernels.interface import Kernels
from stoa.engine.request import SamplingParams, TokenLogprob
from stoa.engine.sequence import Sequence
from stoa.errors import InvalidRequest

MAX_LOGPROBS = 20
_MASK64 = (1 << 64) - 1
Row = NDArray[np.float32]


def check_params(p: SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequest naming the first field out of range and what is accepted."""
    for name, ok, accepted in (
        ("max_tokens", p.max_tokens >= 1, "an integer >= 1"),
        ("min_tokens", 0 <= p.min_tokens <= p.max_tokens, "between 0 and max_tokens"),
        ("temperature", 0 <= p.temperature <= 100, "between 0 and 100"),
        ("top_p", 0 < p.top_p <= 1, "above 0 and at most 1"),
        ("top_k", p.top_k >= -1, "0 or -1 (off) or above"),
        ("min_p", 0 <= p.min_p <= 1, "between 0 and 1"),
        ("presence_penalty", -2 <= p.presence_penalty <= 2, "between -2 and 2"),
        ("frequency_penalty", -2 <= p.frequency_penalty <= 2, "between -2 and 2"),
        ("repetition_penalty", 0 < p.repetition_penalty <= 100, "above 0 and at most 100"),
        ("logprobs", p.logprobs is None or 0 <= p.logprobs <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
        ("stop", all(p.stop), "non-empty strings"),
        (
            "stop_token_ids",
            all(0 <= t < vocab_size for t in p.stop_token_ids),
            f"token ids below {vocab_size}",
        ),
        ("logit_bias", all(0 <= t < vocab_size for t in p.logit_bias), f"token ids below {vocab_size}"),
        ("logit_bias", all(-100 <= b <= 100 for b in p.logit_bias.values()), "biases between -100 and 100"),
    ):
        if not ok:
            value = getattr(p, name)
            raise InvalidRequest(f"{name} is {value!r}; accepted: {accepted}", param=name)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position): splitmix64's finalizer over both (Steele et al., 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK64
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


def sample(
    kernels: Kernels, logits: Tensor, seqs: Seq[Sequence], positions: Seq[int], end_tokens: Seq[int]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """logits: [n, V] fp32 (overwritten), row i for the token of seqs[i] at positions[i]. Returns a token and
    maybe logprobs for each; where a grammar cannot be followed, seq.failure is set.

    `end_tokens` are suppressed while `min_tokens` is not reached.
    """
    if not any(_is_special(s) for s in seqs):
        return kernels.argmax(logits), [None] * len(seqs)
    rows: NDArray[np.float32] = logits.numpy()
    raw = [_log_softmax(rows[i]) if s.params.logprobs is not None else None for i, s in enumerate(seqs)]
    for row, seq in zip(rows, seqs, strict=True):
        try:
            _shape(row, seq, end_tokens)
        except InvalidRequest as error:
            seq.failure = error
    tokens = kernels.argmax(logits)
    for i, seq in enumerate(seqs):
        if seq.params.temperature > 0:
            tokens[i] = _draw(rows[i], seq.params, uniform(seq.seed, positions[i]))
    found = [
        None if values is None else _logprob(values, token, seq.params.logprobs or 0)
        for values, token, seq in zip(raw, tokens, seqs, strict=True)
    ]
    return tokens, found


def _is_special(seq: Sequence) -> bool:
    p = seq.params
    return (
        p.temperature > 0
        or p.logprobs is not None
        or seq.grammar is not None
        or bool(p.logit_bias)
        or p.has_penalty
        or seq.num_output < p.min_tokens
    )


def _shape(row: Row, seq: Sequence, end_tokens: Seq[int]) -> None:
    """Penalties, bias, and masks, in place. Repetition counts the prompt too; the others only the output."""
    p = seq.params
    if p.has_penalty:
        if p.repetition_penalty != 1:
            seen = np.unique(np.asarray(seq.tokens))
            values = row[seen]
            row[seen] = np.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        for token, count in Counter(seq.tokens[seq.num_prompt :]).items():
            row[token] -= p.presence_penalty + p.frequency_penalty * count
    for token, bias in p.logit_bias.items():
        row[token] += bias
    if seq.num_output < p.min_tokens:
        row[[*end_tokens, *p.stop_token_ids]] = -np.inf
    if seq.grammar is not None:
        row[~seq.grammar.allowed_mask()] = -np.inf


def _draw(row: Row, p: SamplingParams, u: float) -> int:
    """Inverse CDF over the filtered distribution. Order: temperature, min_p, top_k, top_p."""
    scaled = (row - row.max()).astype(np.float64) / p.temperature
    probs = np.exp(scaled)
    if p.min_p > 0:
        probs[probs < p.min_p] = 0
    if 0 < p.top_k < len(probs):
        probs[probs < np.partition(probs, -p.top_k)[-p.top_k]] = 0
    if p.top_p < 1:
        ordered = np.sort(probs)[::-1]
        mass = np.cumsum(ordered)
        last = int(np.searchsorted(mass, p.top_p * mass[-1]))
        probs[probs < ordered[min(last, len(ordered) - 1)]] = 0
    mass = np.cumsum(probs)
    chosen = int(np.searchsorted(mass, u * mass[-1], side="right"))
    return min(chosen, int(np.flatnonzero(probs)[-1]))


def _log_softmax(row: Row) -> NDArray[np.float64]:
    shifted = (row - row.max()).astype(np.float64)
    return np.asarray(shifted - math.log(np.exp(shifted).sum()))


def _logprob(values: NDArray[np.float64], token: int, count: int) -> TokenLogprob:
    top = np.argpartition(values, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    top = top[np.argsort(-values[top], kind="stable")]
    return TokenLogprob(token, float(values[token]), [(int(t), float(values[t])) for t in top])
