"""The least work that requests are, and between which times any fleet must do it.

Work is seconds of busy replicas. A step with p prompt rows and d decode rows takes fixed + a p + b d + c context, with
p + d <= B rows (`max_batch_tokens`) of at most N sequences (`max_num_seqs`). So a step's fixed part, shared out as fixed/N
to each sequence's row that decodes and to each prompt's last row, or as fixed/B to every row, never adds up to more
than `fixed`: the shares of the rows that are computed, together with their own times, are at most the busy time. The sharing
that makes the whole trace more work is taken. Prompts computed again after a move or an eviction only add to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoa.fleet.policies.facts import Slo
from stoa.fleet.policies.profile import Profile
from stoa.simulator.traces import Requests

Floats = NDArray[np.float64]
QUANTILES = (0.0, 0.5, 0.8, 0.95, 0.99, 0.999)  # of work: requests of like work are made late together


@dataclass(frozen=True, slots=True)
class Patience:
    """What the bound takes for granted of every policy; a run's `Result` tells whether it kept to it (`unserved`,
    `ttft.max_s`, `stall_max_s`)."""

    late_s: float = 600.0  # a late first token comes at most so long after its target
    stall_s: float = 60.0  # a stream stands still so long at most, all its moves and evictions together
    token_s: float = math.inf  # from a token to the next; inf: the longest step there can be


@dataclass(frozen=True, slots=True)
class Curves:
    """Cumulative work, in replica-seconds, at the ends of equal bins: what has been done by then lies between `due` (less
    what is late) and `arrived`, and not below `overdue`."""

    bin_s: float
    arrived: Floats  # [bins]
    due: Floats  # [bins]
    overdue: Floats  # [bins]
    may_be_late: Floats  # [groups, bins]: work of requests whose first token is due in the bin
    most: Floats  # [groups, bins]: work of the greatest of these requests, 0: there are none
    late_allowed: float  # requests
    remembered: int  # bins after which all of a late request is overdue

    @property
    def bins(self) -> int:
        return len(self.arrived)


def row_work(profile: Profile, requests: Requests) -> tuple[Floats, Floats, Floats]:
    """(work until the first token, work of the other tokens in equal parts, what the growth of context adds to it) of
    each request."""
    prompt = requests.prompt_tokens.astype(np.float64)
    decoded = np.maximum(0.0, requests.output_tokens.astype(np.float64) - 1.0)
    growth = profile.context_token_s * 0.5 * decoded * (decoded + 1.0)
    by_seq, by_row = profile.fixed_s / profile.max_num_seqs, profile.fixed_s / profile.max_batch_tokens
    token_s = profile.decode_row_s + profile.context_token_s * prompt
    if np.sum(1.0 + decoded) * by_seq >= np.sum(prompt + decoded) * by_row:
        return profile.prompt_row_s * prompt + by_seq, (token_s + by_seq) * decoded, growth
    return (profile.prompt_row_s + by_row) * prompt, (token_s + by_row) * decoded, growth


def longest_step_s(profile: Profile, requests: Requests) -> float:
    """No step takes longer."""
    if not len(requests):
        return profile.fixed_s
    longest = int((requests.prompt_tokens.astype(np.int64) + requests.output_tokens).max())
    context = min(profile.kv_tokens, profile.max_num_seqs * longest)
    decode = min(profile.max_num_seqs, profile.max_batch_tokens)
    rows = profile.prompt_row_s * profile.max_batch_tokens
    rows += max(0.0, profile.decode_row_s - profile.prompt_row_s) * decode
    return profile.fixed_s + rows + profile.context_token_s * context


def curves(
    requests: Requests,
    profile: Profile,
    slo: Slo,
    *,
    bins: int,
    bin_s: float,
    patience: Patience | None = None,
) -> Curves:
    """A request that not even an idle replica answers in time is late in any case and counts against what may be late.
    Those too long for a replica's memory are no requests."""
    patience = patience or Patience()
    requests = requests.part(
        requests.prompt_tokens.astype(np.int64) + requests.output_tokens <= profile.kv_tokens
    )
    first, even, growth = row_work(profile, requests)
    arrival_s, step_s = requests.arrival_s, min(patience.token_s, longest_step_s(profile, requests))
    due_s = arrival_s + slo.ttft_s
    start_s = due_s + patience.stall_s + step_s
    end_s = start_s + np.maximum(0.0, requests.output_tokens - 1.0) * step_s
    alone_s = profile.prompt_row_s * requests.prompt_tokens + profile.fixed_s * np.ceil(
        requests.prompt_tokens / profile.max_batch_tokens
    )
    timely = alone_s <= slo.ttft_s
    whole = first + even + growth
    edges = np.quantile(whole[timely], QUANTILES) if timely.any() else np.zeros(1)
    group = np.searchsorted(edges, whole[timely], side="right") - 1
    late = np.zeros((len(edges), bins))
    place = _bin(due_s[timely], bin_s, bins)
    inside = place < bins
    np.add.at(late, (group[inside], place[inside]), whole[timely][inside])
    most = np.array([whole[timely][group == g].max(initial=0.0) for g in range(len(edges))])
    return Curves(
        bin_s=bin_s,
        arrived=_summed(arrival_s, whole, bin_s, bins),
        due=_summed(due_s[timely], first[timely], bin_s, bins)
        + _ramps(start_s[timely], end_s[timely], even[timely], bin_s, bins)
        + _summed(end_s[timely], growth[timely], bin_s, bins),
        overdue=_summed(end_s + patience.late_s, whole, bin_s, bins),
        may_be_late=late,
        most=np.where(late > 0, most[:, None], 0.0),
        remembered=int(np.ceil((patience.late_s + np.max(end_s - due_s, initial=0.0)) / bin_s)) + 1,
        late_allowed=float(np.floor((1.0 - slo.attainment) * len(requests) + 1e-9) - np.sum(~timely)),
    )


def _bin(at_s: Floats, bin_s: float, bins: int) -> NDArray[np.int64]:
    """The bin at whose end a time has come; `bins` for times after the last."""
    return np.minimum(np.maximum(np.ceil(at_s / bin_s - 1e-9) - 1.0, 0.0), bins).astype(np.int64)


def _summed(at_s: Floats, work: Floats, bin_s: float, bins: int) -> Floats:
    """Work whose time has come by each bin's end, the times at the end counted."""
    return np.cumsum(np.bincount(_bin(at_s, bin_s, bins), work, minlength=bins + 1)[:bins])


def _ramps(start_s: Floats, end_s: Floats, work: Floats, bin_s: float, bins: int) -> Floats:
    """Work that comes due evenly from its start to its end, by each bin's end."""
    length_s = np.maximum(end_s - start_s, 1e-9)
    slope = work / length_s
    ends_s = np.arange(1, bins + 1) * bin_s
    due = np.zeros(bins)
    for at_s, rise in ((start_s, slope), (start_s + length_s, -slope)):
        place = np.searchsorted(ends_s, at_s)
        weight = np.cumsum(np.bincount(place, rise, minlength=bins + 1)[:bins])
        due += weight * ends_s - np.cumsum(np.bincount(place, rise * at_s, minlength=bins + 1)[:bins])
    return np.maximum.accumulate(np.maximum(due, 0.0))
