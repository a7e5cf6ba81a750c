"""The application: which path is answered by what."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from stoa.batches import Batches
from stoa.errors import StoaError
from stoa.server import organization
from stoa.server.adapters import AdaptersEndpoint
from stoa.server.batches import BatchesEndpoint
from stoa.server.chat import ChatEndpoint
from stoa.server.completions import CompletionsEndpoint
from stoa.server.edge import Edge
from stoa.server.embeddings import EmbeddingsEndpoint
from stoa.server.files import FilesEndpoint
from stoa.server.metrics import Metrics
from stoa.server.models import ModelsEndpoint
from stoa.server.openapi import DocsEndpoint
from stoa.server.probes import ProbesEndpoint
from stoa.server.problems import http_problem, stoa_problem
from stoa.server.service import Service
from stoa.storage.files import Files


def create_app(service: Service, *, files: Files | None = None, batches: Batches | None = None) -> Starlette:
    """The HTTP room of `service`, as an ASGI application. Holds no state but counters. Without `files` or `batches`
    there are no such endpoints."""
    metrics = Metrics(service, batches)
    models, adapters = ModelsEndpoint(service), AdaptersEndpoint(service)
    probes, docs = ProbesEndpoint(service), DocsEndpoint(service)
    post, get = ["POST"], ["GET"]
    routes = [
        Route("/v1/models", models.list, methods=get),
        Route("/v1/models/{id:path}", models.get, methods=get),
        Route("/v1/models/{id:path}", adapters.delete, methods=["DELETE"]),
        Route("/v1/chat/completions", ChatEndpoint(service, metrics).endpoint, methods=post),
        Route("/v1/completions", CompletionsEndpoint(service, metrics).endpoint, methods=post),
        Route("/v1/embeddings", EmbeddingsEndpoint(service).endpoint, methods=post),
        Route("/v1/adapters", adapters.upload, methods=post),
        Route("/v1/load_lora_adapter", adapters.load, methods=post),
        Route("/v1/unload_lora_adapter", adapters.unload, methods=post),
        *(FilesEndpoint(files).routes() if files is not None else ()),
        *(BatchesEndpoint(batches).routes() if batches is not None else ()),
        *organization.routes(service),
        Route("/health", probes.health, methods=get),
        Route("/ready", probes.ready, methods=get),
        Route("/metrics", metrics.endpoint, methods=get),
        Route("/openapi.json", docs.openapi, methods=get),
        Route("/docs", docs.page, methods=get),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Edge, authority=service.authority)],
        exception_handlers={StoaError: stoa_problem, HTTPException: http_problem},
    )
    app.router.redirect_slashes = False
    return app
