"""What operators and their machines look at."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from stoa.engine.stats import EngineStats
from stoa.errors import EngineUnavailable
from stoa.server.openapi import OPERATIONS
from tests.server.fakes import FakeRegistry, FakeReplica


async def samples(http: httpx.AsyncClient) -> dict[str, float]:
    """name{labels} -> value"""
    response = await http.get("/metrics")
    assert response.status_code == 200
    found = {}
    for family in text_string_to_metric_families(response.text):
        for s in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()) if k != "model_name")
            found[f"{s.name}{{{labels}}}" if labels else s.name] = s.value
    return found


async def test_health_and_readiness(http: httpx.AsyncClient, replica: FakeReplica) -> None:
    """Alive at once, ready when the engine is."""
    assert (await http.get("/ready")).status_code == 200
    replica.ready = False
    assert (await http.get("/health")).status_code == 200
    response = await http.get("/ready")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_metrics(http: httpx.AsyncClient, replica: FakeReplica, registry: FakeRegistry) -> None:
    """The engine's numbers as they are, the server's as requests end; adapters by name."""
    replica.statistics = EngineStats(
        running=3,
        waiting=2,
        kv_usage=0.25,
        prefix_query_tokens=10,
        prefix_hit_tokens=4,
        preemptions=1,
        prompt_tokens=100,
        generation_tokens=50,
        adapter_loads=6,
        adapter_evictions=5,
        running_adapters=[registry.get("poet").id],
        waiting_adapters=["f" * 64],
    )
    body = {"model": "org/base", "prompt": "a", "n": 2}
    await http.post("/v1/completions", json=body)
    await http.post("/v1/completions", json=body | {"max_tokens": 2, "stream": True})
    found = await samples(http)
    expected = {
        "stoa:num_requests_running": 3,
        "stoa:num_requests_waiting": 2,
        "stoa:kv_cache_usage_perc": 0.25,
        "stoa:prefix_cache_queries_total": 10,
        "stoa:prefix_cache_hits_total": 4,
        "stoa:num_preemptions_total": 1,
        "stoa:prompt_tokens_total": 100,
        "stoa:generation_tokens_total": 50,
        "stoa:adapter_loads_total": 6,
        "stoa:adapter_evictions_total": 5,
        "stoa:engine_restarts_total": 2,
        "stoa:request_success_total{finished_reason=stop}": 2,
        "stoa:request_success_total{finished_reason=length}": 2,
        "stoa:time_to_first_token_seconds_count": 2,
        "stoa:inter_token_latency_seconds_count": 3,
        "stoa:e2e_request_latency_seconds_count": 2,
    }
    assert {k: found.get(k) for k in expected} == expected
    label = "{max_lora=64,running_lora_adapters=poet,waiting_lora_adapters=private}"
    assert found[f"stoa:lora_requests_info{label}"] > 1e9


async def test_metrics_without_engine(http: httpx.AsyncClient, replica: FakeReplica) -> None:
    """A scrape does not fail with the engine."""
    replica.statistics = EngineUnavailable("down")
    found = await samples(http)
    assert found["stoa:engine_restarts_total"] == 2
    assert "stoa:num_requests_running" not in found


async def test_the_description(http: httpx.AsyncClient) -> None:
    """Every route is described, every reference resolves, the page names every path."""
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert {"messages", "tools", "temperature"} <= set(schemas["ChatRequest"]["properties"])

    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [r for v in value.values() for r in references(v)]
        return [r for v in value for r in references(v)] if isinstance(value, list) else []

    assert all(r.rpartition("/")[2] in schemas for r in references(document))
    app = http._transport.app  # type: ignore[attr-defined]
    absent = ("/v1/organization/", "/v1/files", "/v1/batches")  # this service has neither office nor files
    own = {o.path for o in OPERATIONS if not o.path.startswith(absent)}
    assert {r.path.replace(":path", "") for r in app.routes} == own
    page = (await http.get("/docs")).text
    assert all(o.path in page for o in OPERATIONS)
    assert "http://" not in page.replace("http://HOST:PORT", "")
    assert "https://" not in page
