"""Requests that nothing can answer in time, few enough for a service to keep its promise all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from stoa.planner.problem import Api, Bucket, Fit, Group, Offer, Service

_SHARE = 0.5  # of the requests that may be late; the rest is for queues


def allow_late(
    buckets: Sequence[Bucket],
    fits: Sequence[Fit],
    offers: Sequence[Offer],
    apis: Sequence[Api],
    services: Sequence[Service],
    groups: Sequence[Group],
) -> tuple[tuple[Bucket, ...], tuple[str, ...]]:
    """Marks buckets that no machine and no API, where they may be served, serves in time as late, where a service has so few
    of them that the share it promised can be kept; and says so. Others stay as they are, and make the demand unservable."""
    found, notes = list(buckets), []
    places = {g.name: g.places for g in groups}
    for service in services:
        mine = [k for k, b in enumerate(buckets) if b.service == service.name]
        hopeless = [
            k
            for k in mine
            if not _is_served(k, buckets[k], service, places[buckets[k].group], fits, offers, apis)
        ]
        total, late = (sum(sum(buckets[k].rates) for k in ks) for ks in (mine, hopeless))
        if not hopeless or late > _SHARE * (1 - service.attainment) * total:
            continue
        for k in hopeless:
            found[k] = replace(buckets[k], late=True)
        longest = max(buckets[k].prompt_tokens for k in hopeless)
        percent = 100 * late / total if total else 0.0
        notes.append(
            f"{percent:.2g} % of {service.name} cannot be answered in time by anything that may (prompts of up to "
            f"{longest:.0f} tokens); they are served late, which its {100 * service.attainment:g} % allow"
        )
    return tuple(found), tuple(notes)


def _is_served(
    k: int, bucket: Bucket, service: Service, places: frozenset[str],
    fits: Sequence[Fit], offers: Sequence[Offer], apis: Sequence[Api],
) -> bool:  # fmt: skip
    machines = {o.machine for o in offers if o.place in places and o.limit != 0}
    own = any(f.model in service.models and f.machine in machines and isfinite(f.load_s[k]) for f in fits)
    return own or any(
        a.place in places
        and a.model in service.models
        and a.ttft_s <= service.ttft_s
        and a.tpot_s <= service.tpot_s
        and bucket.prompt_tokens <= a.max_prompt_tokens
        for a in apis
    )
