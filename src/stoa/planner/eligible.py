"""Which machines and APIs may and can answer requests of a bucket; and the few requests that none can answer in time."""

from __future__ import annotations

import math
from dataclasses import replace

from stoa.planner.problem import Api, Bucket, Fit, Problem, Service

_LATE = 0.5  # of the requests that may be late; the rest is for queues


def in_time(problem: Problem, bucket: Bucket, service: Service, fit: Fit, place: str, k: int) -> bool:
    """May and can a replica at the place answer a request of the bucket?"""
    latency_s = problem.network.way_s(bucket.origin, place)
    return (
        fit.model in service.models
        and math.isfinite(fit.load_s[k])
        and (bucket.late or fit.ttft_s[k] + latency_s <= service.ttft_s)
        and bucket.adapters_gib <= fit.adapters_gib
    )


def api_in_time(problem: Problem, bucket: Bucket, service: Service, api: Api) -> bool:
    latency_s = problem.network.way_s(bucket.origin, api.place)
    fast = (bucket.late or api.ttft_s + latency_s <= service.ttft_s) and api.tpot_s <= service.tpot_s
    return api.model in service.models and fast and bucket.prompt_tokens <= api.max_prompt_tokens


def allow_late(problem: Problem) -> tuple[tuple[Bucket, ...], tuple[str, ...]]:
    """The buckets, and a note for each service: those that nothing serves in time, where they may be served, are marked as
    late if a service has so few of them that the share it promised can be kept. Others stay as they are, and make the
    demand unservable."""
    found, notes = list(problem.buckets), []
    for service in problem.services:
        mine = [k for k, b in enumerate(problem.buckets) if b.service == service.name]
        hopeless = [k for k in mine if not _is_served(problem, service, k)]
        total, late = (sum(sum(problem.buckets[k].rates) for k in ks) for ks in (mine, hopeless))
        if not hopeless or late > _LATE * (1 - service.attainment) * total:
            continue
        for k in hopeless:
            found[k] = replace(found[k], late=True)
        longest = max(found[k].prompt_tokens for k in hopeless)
        percent = 100 * late / total if total else 0.0
        notes.append(
            f"{percent:.2g} % of {service.name} cannot be answered in time by anything that may (prompts of up to "
            f"{longest:.0f} tokens); they are served late, which its {100 * service.attainment:g} % allow"
        )
    return tuple(found), tuple(notes)


def _is_served(problem: Problem, service: Service, k: int) -> bool:
    bucket = problem.buckets[k]
    places = next(g.places for g in problem.groups if g.name == bucket.group)
    own = any(
        o.machine == f.machine and in_time(problem, bucket, service, f, o.place, k)
        for o in problem.offers
        if o.place in places and o.limit != 0 and o.availability > 0
        for f in problem.fits
    )
    return own or any(a.place in places and api_in_time(problem, bucket, service, a) for a in problem.apis)
