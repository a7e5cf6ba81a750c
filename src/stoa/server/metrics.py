"""GET /metrics: Prometheus text, named as vLLM's metrics are, with `stoa:` in front.

What a request did is counted here as it happens; what the engine does is asked of it at each scrape.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from stoa.batches import Batches
from stoa.batches.batch import Status
from stoa.engine.stats import EngineStats
from stoa.errors import StoaError
from stoa.server.service import Service

_STATS_S = 2.0  # an engine that takes longer is left out of the scrape
_TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_E2E_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_LABELS = ["model_name"]
# name, what it is, attribute of EngineStats
_GAUGES = (
    ("num_requests_running", "Sequences in the engine's batch", "running"),
    ("num_requests_waiting", "Sequences that wait for the engine", "waiting"),
    ("kv_cache_usage_perc", "Share of the memory pool held by sequences, 0 to 1", "kv_usage"),
    ("lora_adapters_resident", "Adapters in the memory pool", "adapters_resident"),
)
_COUNTERS = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "prefix_query_tokens"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", "prefix_hit_tokens"),
    ("num_preemptions", "Sequences put back for want of memory", "preemptions"),
    ("prompt_tokens", "Prompt tokens processed", "prompt_tokens"),
    ("generation_tokens", "Tokens generated", "generation_tokens"),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead", "draft_tokens"),
    ("spec_decode_num_accepted_tokens", "Guesses that were right", "accepted_draft_tokens"),
    ("adapter_loads", "Adapters brought into the memory pool", "adapter_loads"),
    ("adapter_evictions", "Adapters put out of the memory pool", "adapter_evictions"),
)


class Metrics:
    """The counters of one application, in a registry of its own. `batches`: None if it has none."""

    def __init__(self, service: Service, batches: Batches | None = None) -> None:
        self._service, self._batches = service, batches
        self._counting: asyncio.Task[dict[str, int]] | None = None
        self._registry = CollectorRegistry()
        name = service.model_id
        self.time_to_first_token = self._histogram(
            "stoa:time_to_first_token_seconds", "From arrival to the first token", _TTFT_S
        ).labels(name)
        self.inter_token_latency = self._histogram(
            "stoa:inter_token_latency_seconds", "Between batches of tokens of one request", _TOKEN_S
        ).labels(name)
        self.e2e_latency = self._histogram(
            "stoa:e2e_request_latency_seconds", "From arrival to the last token", _E2E_S
        ).labels(name)
        self._success = Counter(
            "stoa:request_success",
            "Choices that ended, by reason",
            [*_LABELS, "finished_reason"],
            registry=self._registry,
        )
        for reason in ("stop", "length"):
            self._success.labels(name, reason)

    def finished(self, reason: str) -> None:
        self._success.labels(self._service.model_id, reason).inc()

    async def endpoint(self, request: Request) -> Response:
        own = generate_latest(self._registry)
        families = [_counter("engine_restarts", "Times the engine was started again", self._service)]
        families[0].add_metric([self._service.model_id], self._service.replica.restarts)
        try:
            stats = await asyncio.wait_for(self._service.replica.stats(), _STATS_S)
        except (StoaError, TimeoutError):
            stats = None
        found: list[Metric] = [*families, *self._fleet_families()]
        if stats is not None:
            names = await self._names(stats)
            found += _engine_families(stats, self._service, names)
        if self._batches is not None:
            found += await self._batch_families(self._batches)
        return Response(own + generate_latest(_Once(found)), media_type=CONTENT_TYPE_LATEST)

    def _fleet_families(self) -> list[Metric]:
        model, states = self._service.model_id, self._service.replica.states()
        held = GaugeMetricFamily("stoa:requests_held", "Requests that wait for a replica", labels=_LABELS)
        held.add_metric([model], states.pop("held"))
        replicas = GaugeMetricFamily("stoa:replicas", "Replicas, by state", labels=[*_LABELS, "state"])
        for state, count in states.items():
            replicas.add_metric([model, state], count)
        return [held, replicas]

    async def _batch_families(self, batches: Batches) -> list[Metric]:
        """Batches by status only while the database answers."""
        model, work = self._service.model_id, batches.work
        flying = GaugeMetricFamily("stoa:batch_lines_in_flight", "Lines sent, not answered", labels=_LABELS)
        flying.add_metric([model], work.in_flight)
        labels = [*_LABELS, "outcome"]
        lines = CounterMetricFamily(
            "stoa:batch_lines", "Lines of batches, by what they came to", labels=labels
        )
        for outcome in ("completed", "failed", "not_run"):
            lines.add_metric([model, outcome], getattr(work, outcome))
        if (counts := await self._counts(batches)) is None:
            return [flying, lines]
        by_status = GaugeMetricFamily("stoa:batches", "Batches, by status", labels=[*_LABELS, "status"])
        for status in get_args(Status):
            by_status.add_metric([model, status], counts.get(status, 0))
        return [flying, lines, by_status]

    async def _counts(self, batches: Batches) -> dict[str, int] | None:
        """None: the database does not answer now. A statement is not cancelled, which would cost its connection; nor is
        another begun beside it."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.ensure_future(batches.counts())
        counting = self._counting
        await asyncio.wait({counting}, timeout=_STATS_S)
        if not counting.done() or isinstance(counting.exception(), StoaError):
            return None
        return counting.result()

    async def _names(self, stats: EngineStats) -> dict[str, str]:
        """Adapter id -> name, for people and routers. What projects call their own is nobody else's business."""
        if not stats.running_adapters and not stats.waiting_adapters:
            return {}
        entries = await asyncio.to_thread(self._service.adapters.public.list)
        return {entry.id: entry.name for entry in entries}

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(name, text, _LABELS, registry=self._registry, buckets=tuple(buckets))


class _Once(CollectorRegistry):
    """A snapshot that can be written like a registry."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _counter(name: str, text: str, service: Service) -> CounterMetricFamily:
    return CounterMetricFamily(f"stoa:{name}", text, labels=_LABELS)


def _engine_families(stats: EngineStats, service: Service, names: dict[str, str]) -> list[Metric]:
    found: list[Metric] = []
    for name, text, attribute in _GAUGES:
        gauge = GaugeMetricFamily(f"stoa:{name}", text, labels=_LABELS)
        gauge.add_metric([service.model_id], getattr(stats, attribute))
        found.append(gauge)
    for name, text, attribute in _COUNTERS:
        counter = _counter(name, text, service)
        counter.add_metric([service.model_id], getattr(stats, attribute))
        found.append(counter)
    labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
    lora = GaugeMetricFamily(
        "stoa:lora_requests_info", "Adapters in use; the value is the time", labels=labels
    )
    running, waiting = (
        ",".join(sorted({names.get(i, "private") for i in ids}))
        for ids in (stats.running_adapters, stats.waiting_adapters)
    )
    lora.add_metric([str(service.max_lora), running, waiting], time.time())
    return [*found, lora]
