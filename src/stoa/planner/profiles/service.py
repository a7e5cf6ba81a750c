"""How much of a replica a request takes: a steady state of continuous batching with chunked prefill.

Requests of sizes P_i (prompt) and O_i (output tokens) come at rates λ_i. A prompt's last row gives the first token, so
D_i = O_i - 1 are decoded, at a mean context of L_i = P_i + O_i / 2. With r_i = λ_i·s requests of a size begun in a mean
step of s seconds,
    B = Σ r_i·D_i sequences decode (Little's law), Σ r_i·P_i rows of a step are prompts, and by `Profile.step_s`
    s = base + prompt_row_s·Σ r_i·P_i,    base = fixed_s + decode_row_s·B + context_token_s·Σ r_i·D_i·L_i.
A prompt has R = max_batch_tokens - B rows of a step and so takes n_i = ceil(P_i / R) steps. If all prompts fill a share
ρ = Σ r_i·P_i / R of these rows, one stays h_i = max(1, P_i / R) + ρ·min(1, P_i / R) steps: the first may be shared.

The replica is full when one more request would break one of
    (R) rows       B + Σ r_i·P_i <= max_batch_tokens
    (S) sequences  B + Σ r_i·h_i <= N = max_num_seqs
    (M) memory     Σ r_i·(D_i·L_i + h_i·P_i) <= kv_tokens - (P/2 + O/4)     P, O: means over requests
    (T) pace       fixed_s + decode_row_s + context_token_s·L_i + (1 - 1/N)·(s - fixed_s) <= tpot_i, where O_i > 1
    (F) first      b·s/2 + n_i·base + prompt_row_s·(P_i + Σ r_j·P_j) <= ttft_i, b = 1 - exp(-B - Σ r_j·h_j)
All left sides rise with r, so the fullest r of given proportions is found by halving. Then λ = r / s, which rises with
r too.

(T): a sequence's own row, and the others' as an arrival finds them. (F): the rest of the step under way, if the replica
is busy (b), and the steps of the prompt. What requests wait behind others or for a place, because they do not come
evenly, is in neither: whoever plans leaves room for it.

(M): where memory is what ends it, a replica that admits whatever fits (as this engine, vLLM and the simulator do) must
often take memory back. On average half a prompt and a quarter of an answer stay free, and `AGAIN`·O rows a request are
computed again, as rows of a prompt are. Both shares are fitted to 357 simulated replicas of all sizes; as sequences
differ, the second sets in gradually from `_SHORT_FROM` of the memory. Targets do not count for that: a replica that has
once filled up gets out only if it can do more than what comes.

But for h, b, n and small terms of (M), each limit allows a mixture if Σ λ_i·(what a request i brings) <= 1, and the
load 1/λ of a size is the greatest of these over the limits. The greatest of sums is at most the sum of the greatest, so
loads that were reckoned under the same limits may be added: a mixture whose loads sum to 1 fits. So all that are added
must have the same targets. `benchmarks/throughput.py` solves mixtures as they are, and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
AGAIN = 0.8  # rows computed again for each token of output, where memory is what is short
FREE_PROMPT, FREE_OUTPUT = 0.5, 0.25  # memory that stays free: shares of a request's prompt and output
SHORT_FROM = 0.85  # sequences differ: so much of the memory in use on average, and sometimes it is short
_HALVINGS = 40
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Replicas:
    """Columns of profiles, [F, 1]."""

    fixed_s: Floats
    prompt_row_s: Floats
    decode_row_s: Floats
    context_token_s: Floats
    max_num_seqs: Floats
    max_batch_tokens: Floats
    kv_tokens: Floats

    @staticmethod
    def of(profiles: Sequence[Profile]) -> _Replicas:
        def column(name: str) -> Floats:
            return np.array([getattr(p, name) for p in profiles], np.float64)[:, None]

        return _Replicas(*(column(name) for name in _Replicas.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Requests, and what they are promised, [K]."""

    prompt: Floats
    output: Floats
    ttft_s: Floats
    tpot_s: Floats

    @property
    def decoded(self) -> Floats:
        return self.output - 1

    @property
    def context(self) -> Floats:
        return self.prompt + self.output / 2

    def alone_s(self, m: _Replicas) -> Floats:
        """[F, K] times to the first token on an empty replica."""
        return m.fixed_s * np.ceil(self.prompt / m.max_batch_tokens) + m.prompt_row_s * self.prompt

    def spare_s(self, m: _Replicas) -> Floats:
        """[F, K] what (T) leaves of a step for other requests' rows."""
        own_s = m.fixed_s + m.decode_row_s + m.context_token_s * self.context
        return np.where(self.decoded > 0, self.tpot_s - own_s, np.inf)

    def possible(self, m: _Replicas) -> Flags:
        """[F, K] in time alone, and in memory."""
        timely = (self.alone_s(m) <= self.ttft_s) & (self.spare_s(m) >= 0)
        return timely & (self.prompt + self.output <= m.kv_tokens)


def loads_of(
    profiles: Sequence[Profile],
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    ttft_s: ArrayLike,
    tpot_s: ArrayLike,
) -> tuple[Floats, Floats]:
    """([F, K] seconds of a replica that a request takes, [F, K] seconds to its first token if it does not wait), both
    with the replica as full as the targets allow. The first is infinite where even a request alone is late or does not
    fit, the second then that of a request alone. Sizes and targets: [K]; below one token counts as one."""
    given = (prompt_tokens, output_tokens, ttft_s, tpot_s)
    prompt, output, *targets = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, np.float64)) for a in given))
    m, x = _Replicas.of(profiles), _Sizes(np.maximum(prompt, 1.0), np.maximum(output, 1.0), *targets)
    possible = x.possible(m)
    rate, full = _full(m, x)
    load_s = _ratio(1.0, np.where(possible, rate, 0.0), np.inf)
    return load_s, np.where(possible, _first_s(m, full, x), x.alone_s(m))


@dataclass(frozen=True, slots=True)
class _State:
    """All [F, K]."""

    step_s: Floats
    base_s: Floats
    room: Floats  # rows that a step has for prompts
    rows: Floats  # of prompts in a step
    sequences: Floats
    memory: Floats  # tokens
    fits: Flags  # (R) and (S)


def _full(m: _Replicas, x: _Sizes) -> tuple[Floats, _State]:
    """([F, K] requests a second of a full replica, its state)."""
    bears = _greatest(lambda r: _at(m, x, r).fits, np.minimum(m.max_num_seqs, m.max_batch_tokens / x.prompt))
    usable = np.maximum(m.kv_tokens - (FREE_PROMPT * x.prompt + FREE_OUTPUT * x.output), 1.0)
    holds = _greatest(lambda r: _at(m, x, r).memory <= usable, bears)
    short = np.clip((_at(m, x, bears).memory / usable - SHORT_FROM) / (1 - SHORT_FROM), 0.0, 1.0)
    again_s = short * AGAIN * m.prompt_row_s * x.output

    def timely(r: Floats) -> Flags:
        state = _at(m, x, r)
        paced = (state.step_s - m.fixed_s) * (1 - 1 / m.max_num_seqs) <= x.spare_s(m)
        kept: Flags = paced & (_first_s(m, state, x) <= x.ttft_s)
        return kept

    keeps = _greatest(timely, bears)
    by_memory = _ratio(holds, _at(m, x, holds).step_s + holds * again_s)
    by_targets = _ratio(keeps, _at(m, x, keeps).step_s)
    return np.minimum(by_memory, by_targets), _at(m, x, np.minimum(keeps, holds))


def _at(m: _Replicas, x: _Sizes, r: Floats) -> _State:
    """The steady state in which a step begins `r` [F, K] requests."""
    decoding, rows = r * x.decoded, r * x.prompt
    context = decoding * x.context
    base_s = m.fixed_s + m.decode_row_s * decoding + m.context_token_s * context
    room = np.maximum(m.max_batch_tokens - decoding, 1e-9)
    steps = np.maximum(1.0, x.prompt / room) + rows / room * np.minimum(1.0, x.prompt / room)
    sequences = decoding + r * steps
    return _State(
        step_s=base_s + m.prompt_row_s * rows, base_s=base_s, room=room, rows=rows, sequences=sequences,
        memory=context + rows * steps,
        fits=(decoding + rows <= m.max_batch_tokens) & (sequences <= m.max_num_seqs),
    )  # fmt: skip


def _first_s(m: _Replicas, state: _State, x: _Sizes) -> Floats:
    """The left side of (F)."""
    waits_s = -np.expm1(-state.sequences) * state.step_s / 2
    return waits_s + np.ceil(x.prompt / state.room) * state.base_s + m.prompt_row_s * (x.prompt + state.rows)


def _greatest(fits: Callable[[Floats], Flags], most: Floats) -> Floats:
    """The greatest r [F, K] up to `most` that fits; what is smaller fits as well."""
    low, high = np.zeros_like(most), most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = fits(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def _ratio(above: ArrayLike, below: Floats, otherwise: float = 0.0) -> Floats:
    """`otherwise` where there would be nothing below."""
    return np.divide(above, below, out=np.full_like(below, otherwise), where=below > 0)


def beside_adapters(profile: Profile, adapters_gib: float, kv_token_bytes: float) -> Profile:
    """The profile of a replica that keeps adapters of so many GiB, which share one memory with contexts. ConfigError if
    nothing is left for those."""
    left = int(profile.kv_tokens - adapters_gib * GIB / kv_token_bytes)
    if left < 1:
        there_gib = profile.kv_tokens * kv_token_bytes / GIB
        raise ConfigError(
            f"{profile.name}: adapters of {adapters_gib:.2f} GiB do not fit; {there_gib:.2f} GiB are there for them "
            "and for contexts",
            param="adapters_gib",
        )
    return msgspec.structs.replace(profile, kv_tokens=left)
