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

from stoa.engine.kernels.interface import DrawRow, Kernels
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
    kernels: Kernels, logits: Tensor, wanted: Seq[tuple[Sequence, int]], end_tokens: Seq[int]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """logits: [n, V] fp32 (overwritten), row i for the token of the sequence and at the position in wanted[i].
    Returns a token and maybe logprobs for each; where a grammar cannot be followed, seq.failure is set.

    `end_tokens` are suppressed while `min_tokens` is not reached.
    """
    seqs = [seq for seq, _ in wanted]
    if any(_is_shaped(s) for s in seqs):
        host = logits.cpu()  # itself, where it is there already
        rows: NDArray[np.float32] = host.numpy()
        raw = [
            _log_softmax(row) if s.params.logprobs is not None else None
            for row, s in zip(rows, seqs, strict=True)
        ]
        for row, seq in zip(rows, seqs, strict=True):
            try:
                _shape(row, seq, end_tokens)
            except InvalidRequest as error:
                seq.failure = error
        if host is not logits:
            logits.copy_(host)
    else:
        raw = [None] * len(seqs)
    tokens = kernels.draw(logits, [_drawing(seq, position) for seq, position in wanted])
    found = [
        None if values is None else _logprob(values, token, seq.params.logprobs or 0)
        for values, token, seq in zip(raw, tokens, seqs, strict=True)
    ]
    return tokens, found


def _drawing(seq: Sequence, position: int) -> DrawRow:
    p = seq.params
    if p.temperature <= 0:
        return DrawRow()
    return DrawRow(p.temperature, p.min_p, p.top_p, uniform(seq.seed, position), p.top_k)


def _is_shaped(seq: Sequence) -> bool:
    """Do its logits change before a token is drawn, or does somebody want to see them?"""
    p = seq.params
    return (
        p.logprobs is not None
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


def _log_softmax(row: Row) -> NDArray[np.float64]:
    shifted = (row - row.max()).astype(np.float64)
    return np.asarray(shifted - math.log(np.exp(shifted).sum()))


def _logprob(values: NDArray[np.float64], token: int, count: int) -> TokenLogprob:
    top = np.argpartition(values, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    top = top[np.argsort(-values[top], kind="stable")]
    return TokenLogprob(token, float(values[token]), [(int(t), float(values[t])) for t in top])
