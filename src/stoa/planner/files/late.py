"""Requests that nothing can answer in time, few enough for a service to keep its promise all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stoa.planner.problem import Api, Bucket, Fit, Service

_SHARE = 0.5  # of the requests that may be late; the rest is for queues


def allow_late(
    buckets: Sequence[Bucket], fits: Sequence[Fit], apis: Sequence[Api], services: Sequence[Service]
) -> tuple[tuple[Bucket, ...], tuple[str, ...]]:
    """Marks buckets that no machine and no API serves in time as late, where a service has so few of them that the share it
    promised can be kept; and says so. Others stay as they are, and make the demand unservable."""
    found, notes = list(buckets), []
    for service in services:
        mine = [k for k, b in enumerate(buckets) if b.service == service.name]
        hopeless = [k for k in mine if not _in_time(k, buckets[k], service, fits, apis)]
        total, late = (sum(sum(buckets[k].rates) for k in ks) for ks in (mine, hopeless))
        if not hopeless or late > _SHARE * (1 - service.attainment) * total:
            continue
        for k in hopeless:
            found[k] = replace(buckets[k], late=True)
        longest = max(buckets[k].prompt_tokens for k in hopeless)
        notes.append(
            f"{late / total if total else 0:.2%} of {service.name} cannot be answered in time by anything (prompts of up to "
            f"{longest:.0f} tokens); they are served late, which its {service.attainment:.1%} allow"
        )
    return tuple(found), tuple(notes)


def _in_time(k: int, bucket: Bucket, service: Service, fits: Sequence[Fit], apis: Sequence[Api]) -> bool:
    own = any(f.model in service.models and f.load_s[k] < float("inf") for f in fits)
    return own or any(
        a.model in service.models
        and a.ttft_s <= service.ttft_s
        and a.tpot_s <= service.tpot_s
        and bucket.prompt_tokens <= a.max_prompt_tokens
        for a in apis
    )
