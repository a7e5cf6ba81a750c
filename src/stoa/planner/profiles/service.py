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
loads that were reckoned under the same limits may be added: a mixture whose loads sum to 1 fits. (T) and (F) of another
size are further limits, which `loads_of(together=True)` respects; `mixed_load` solves a mixture as it is.
"""

from __future__ import annotations

import math
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
_FREE_PROMPT, _FREE_OUTPUT = 0.5, 0.25  # memory that stays free: shares of a request's prompt and output
_SHORT_FROM = 0.85  # sequences differ: so much of the memory in use on average, and sometimes it is short
_HALVINGS = 40
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Replicas:
    """Columns of profiles, [F, 1, 1]."""

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
            return np.array([getattr(p, name) for p in profiles], np.float64)[:, None, None]

        return _Replicas(*(column(name) for name in _Replicas.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Requests, and what they are promised; all arrays broadcast to [F, K, C]."""

    prompt: Floats
    output: Floats
    ttft_s: Floats
    tpot_s: Floats

    @staticmethod
    def of(prompt: Floats, output: Floats, ttft_s: Floats, tpot_s: Floats) -> _Sizes:
        return _Sizes(np.maximum(prompt, 1.0), np.maximum(output, 1.0), ttft_s, tpot_s)

    @property
    def decoded(self) -> Floats:
        return self.output - 1

    @property
    def context(self) -> Floats:
        return self.prompt + self.output / 2

    def where(self, possible: Flags) -> _Sizes:
        """Without targets elsewhere. [F, C]"""
        targets = (np.where(possible[:, None, :], target, np.inf) for target in (self.ttft_s, self.tpot_s))
        return _Sizes(self.prompt, self.output, *targets)

    def alone_s(self, m: _Replicas) -> Floats:
        """Times to the first token on an empty replica."""
        return m.fixed_s * np.ceil(self.prompt / m.max_batch_tokens) + m.prompt_row_s * self.prompt

    def spare_s(self, m: _Replicas) -> Floats:
        """What (T) leaves of a step for other requests' rows."""
        own_s = m.fixed_s + m.decode_row_s + m.context_token_s * self.context
        return np.where(self.decoded > 0, self.tpot_s - own_s, np.inf)

    def possible(self, m: _Replicas) -> Flags:
        """In time alone, and in memory."""
        timely = (self.alone_s(m) <= self.ttft_s) & (self.spare_s(m) >= 0)
        return timely & (self.prompt + self.output <= m.kv_tokens)


def load_of(
    profile: Profile, prompt_tokens: float, output_tokens: float, ttft_s: float, tpot_s: float
) -> tuple[float, float]:
    """(load_s, ttft_s) of one size on one replica: see `loads_of`."""
    load, first = loads_of([profile], [prompt_tokens], [output_tokens], [ttft_s], [tpot_s])
    return float(load[0, 0]), float(first[0, 0])


def loads_of(
    profiles: Sequence[Profile],
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    ttft_s: ArrayLike,
    tpot_s: ArrayLike,
    *,
    together: bool = False,
) -> tuple[Floats, Floats]:
    """([F, K] seconds of a replica that a request takes, [F, K] seconds to its first token if it does not wait), both
    with the replica as full as the targets allow. The first is infinite where even a request alone is late or does not
    fit, the second then that of a request alone. Sizes and targets: [K]; below one token counts as one.

    `together`: all sizes are going to share replicas, and none fills one beyond what the targets of the others allow
    (of those that are in time alone). Then loads may be added though targets differ; see above."""
    columns = _columns(prompt_tokens, output_tokens, ttft_s, tpot_s)
    replicas, one = _Replicas.of(profiles), np.ones((1, 1, 1))
    sizes = _Sizes.of(*(column[None, :, None] for column in columns))
    possible = sizes.possible(replicas)[..., 0]
    promised = (
        _Sizes.of(*(column[None, None, :] for column in columns)).where(possible) if together else sizes
    )
    rate, full = _full(replicas, sizes, one, promised)
    first_s = np.where(
        possible, _first_s(replicas, full, sizes.prompt)[..., 0], sizes.alone_s(replicas)[..., 0]
    )
    return _inverse(np.where(possible, rate, 0.0)), first_s


def mixed_load(
    profile: Profile,
    rates: ArrayLike,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    ttft_s: ArrayLike,
    tpot_s: ArrayLike,
) -> float:
    """How full a replica is that serves all of these sizes at these rates (requests a second) together: 1 is as full as
    the strictest of their targets allows. Infinite where one of them is late even alone. All arguments: [C]; sizes
    without a rate do not count."""
    columns = _columns(rates, prompt_tokens, output_tokens, ttft_s, tpot_s)
    rate, *rest = (column[None, None, columns[0] > 0] for column in columns)
    if not rate.size:
        return 0.0
    sizes, replicas, total = _Sizes.of(*rest), _Replicas.of([profile]), float(rate.sum())
    if not sizes.possible(replicas).all():
        return math.inf
    full, _ = _full(replicas, sizes, rate / total, sizes)
    return total * float(_inverse(full)[0, 0])


def _columns(*values: ArrayLike) -> Sequence[Floats]:
    return np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, np.float64)) for a in values))


@dataclass(frozen=True, slots=True)
class _State:
    """All [F, K, 1]."""

    step_s: Floats
    base_s: Floats
    room: Floats  # rows that a step has for prompts
    rows: Floats  # of prompts in a step
    sequences: Floats
    memory: Floats  # tokens
    fits: Flags  # (R) and (S)


def _full(m: _Replicas, x: _Sizes, share: Floats, promised: _Sizes) -> tuple[Floats, _State]:
    """([F, K] requests a second of a full replica, its state). `share` [1, K, C]: of all requests, sums to 1 over C.
    `promised` [F, K or 1, any]: sizes whose targets are kept, whether they come or not."""
    most = np.minimum(m.max_num_seqs, m.max_batch_tokens / _sum(share, x.prompt))
    bears = _greatest(lambda r: _at(m, x, share, r).fits, most)
    usable = np.maximum(m.kv_tokens - _sum(share, _FREE_PROMPT * x.prompt + _FREE_OUTPUT * x.output), 1.0)
    holds = _greatest(lambda r: _at(m, x, share, r).memory <= usable, bears)
    short = np.clip((_at(m, x, share, bears).memory / usable - _SHORT_FROM) / (1 - _SHORT_FROM), 0.0, 1.0)
    again_s = short * AGAIN * m.prompt_row_s * _sum(share, x.output)
    spare_s = np.min(promised.spare_s(m), axis=-1, keepdims=True)

    def timely(r: Floats) -> Flags:
        state = _at(m, x, share, r)
        paced = (state.step_s - m.fixed_s) * (1 - 1 / m.max_num_seqs) <= spare_s
        first_s = _first_s(m, state, promised.prompt)
        kept: Flags = paced & np.all(first_s <= promised.ttft_s, axis=-1, keepdims=True)
        return kept

    keeps = _greatest(timely, bears)
    by_memory = _rate(holds, _at(m, x, share, holds).step_s + holds * again_s)
    by_targets = _rate(keeps, _at(m, x, share, keeps).step_s)
    return np.minimum(by_memory, by_targets), _at(m, x, share, np.minimum(keeps, holds))


def _at(m: _Replicas, x: _Sizes, share: Floats, r: Floats) -> _State:
    """The steady state in which a step begins `r` [F, K, 1] requests."""
    begun = r * share
    decoding = _sum(begun, x.decoded)
    context = _sum(begun, x.decoded * x.context)
    rows = _sum(begun, x.prompt)
    base_s = m.fixed_s + m.decode_row_s * decoding + m.context_token_s * context
    room = np.maximum(m.max_batch_tokens - decoding, 1e-9)
    steps = np.maximum(1.0, x.prompt / room) + rows / room * np.minimum(1.0, x.prompt / room)
    sequences = decoding + _sum(begun, steps)
    return _State(
        step_s=base_s + m.prompt_row_s * rows, base_s=base_s, room=room, rows=rows, sequences=sequences,
        memory=context + _sum(begun, steps * x.prompt),
        fits=(decoding + rows <= m.max_batch_tokens) & (sequences <= m.max_num_seqs),
    )  # fmt: skip


def _first_s(m: _Replicas, state: _State, prompt: Floats) -> Floats:
    """The left side of (F)."""
    waits_s = -np.expm1(-state.sequences) * state.step_s / 2
    return waits_s + np.ceil(prompt / state.room) * state.base_s + m.prompt_row_s * (prompt + state.rows)


def _sum(weights: Floats, values: Floats) -> Floats:
    total: Floats = np.sum(weights * values, axis=-1, keepdims=True)
    return total


def _greatest(fits: Callable[[Floats], Flags], most: Floats) -> Floats:
    """The greatest r [F, K, 1] up to `most` that fits; what is smaller fits as well."""
    low, high = np.zeros_like(most), most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = fits(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def _rate(begun: Floats, step_s: Floats) -> Floats:
    """[F, K] requests a second."""
    return np.divide(begun, step_s, out=np.zeros_like(step_s), where=step_s > 0)[..., 0]


def _inverse(rate: Floats) -> Floats:
    return np.divide(1.0, rate, out=np.full_like(rate, np.inf), where=rate > 0)


# -- memory for adapters


def kv_tokens_left(profile: Profile, adapters_gib: float, kv_token_bytes: float) -> int:
    """Tokens of context that still fit beside adapters of so many GiB: they share one memory. 0: none."""
    if not (adapters_gib >= 0 and kv_token_bytes > 0):
        raise ConfigError(
            f"adapters_gib is {adapters_gib} and kv_token_bytes {kv_token_bytes}; accepted: 0 or above, and above 0",
            param="adapters_gib",
        )
    return max(0, int(profile.kv_tokens - adapters_gib * GIB / kv_token_bytes))


def beside_adapters(profile: Profile, adapters_gib: float, kv_token_bytes: float) -> Profile:
    """The profile of a replica that keeps adapters of so many GiB. ConfigError if nothing is left for contexts."""
    left = kv_tokens_left(profile, adapters_gib, kv_token_bytes)
    if left < 1:
        there_gib = profile.kv_tokens * kv_token_bytes / GIB
        raise ConfigError(
            f"{profile.name}: adapters of {adapters_gib:.2f} GiB do not fit; {there_gib:.2f} GiB are there for them "
            "and for contexts",
            param="adapters_gib",
        )
    return msgspec.structs.replace(profile, kv_tokens=left)
