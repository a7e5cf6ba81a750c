"""What a request and an interval of time have used, as the engine measured it.

The time of a step is divided among the sequences in it, to the nanosecond: the shares of all steps of an interval
sum to its `busy_ns`. Memory is counted in byte-milliseconds of the pool; an adapter's bytes are divided among
the sequences that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from stoa.engine.request import FinishReason


class RequestUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request, all its choices together. Sent once, also when it was cancelled or failed."""

    request_id: str
    outcome: FinishReason  # of the last choice to end
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ns: int = 0  # from arrival to the first step with a row of it
    prefill_ns: int = 0  # from there to the first token, or the end
    decode_ns: int = 0  # from the first token to the end
    compute_ns: int = 0  # its share of the time of steps
    kv_byte_ms: int = 0
    adapter_byte_ms: int = 0


def summed(request_id: str, outcome: FinishReason, usages: Iterable[RequestUsage]) -> RequestUsage:
    """Every amount of all of them together."""
    amounts = dict.fromkeys(RequestUsage.__struct_fields__[2:], 0)
    for usage in usages:
        for name in amounts:
            amounts[name] += getattr(usage, name)
    return RequestUsage(request_id=request_id, outcome=outcome, **amounts)


class AccountLine(msgspec.Struct, frozen=True, kw_only=True):
    """One account's part of an interval. `account` is what the request said: opaque here."""

    account: str
    compute_ns: int = 0
    kv_byte_ms: int = 0
    adapter_byte_ms: int = 0


class Interval(msgspec.Struct, frozen=True, kw_only=True, tag="interval"):
    """All that an engine did in [start_ns, end_ns), Unix time. Intervals of one engine follow each other without
    gap or overlap, numbered from 0. Time beyond `busy_ns` was idle; memory beyond the lines' was free."""

    number: int
    start_ns: int
    end_ns: int
    busy_ns: int = 0  # sum of the lines' compute_ns
    pool_bytes: int = 0
    lines: list[AccountLine] = []
