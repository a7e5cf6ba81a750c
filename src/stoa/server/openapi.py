"""GET /openapi.json, made from the same structs that bodies are read into, and GET /docs, a page of it."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import stoa
from stoa.server import organization
from stoa.server.adapters import LoadAdapter, ModelDeleted, UnloadAdapter
from stoa.server.batches import BatchList, BatchObject, CreateBatch
from stoa.server.chat import ChatChunk, ChatCompletion
from stoa.server.chat_body import ChatRequest
from stoa.server.completions import Completion, CompletionRequest
from stoa.server.embeddings import EmbeddingList, EmbeddingRequest
from stoa.server.files import FileList, FileObject
from stoa.server.models import ModelCard, ModelList
from stoa.server.organization.lists import Deleted
from stoa.server.problems import ErrorBody
from stoa.server.service import Service

_TEXT = "text/plain"


@dataclass(frozen=True)
class Operation:
    """One method of one path. `body` and `answer` are structs; no answer means text."""

    method: str
    path: str
    summary: str
    body: type[Any] | None = None
    answer: type[Any] | None = None
    chunk: type[Any] | None = None  # of the event stream, where there is one


OPERATIONS = (
    Operation("get", "/v1/models", "The base model and its adapters", answer=ModelList),
    Operation("get", "/v1/models/{id}", "One of them; also name@version", answer=ModelCard),
    Operation(
        "post", "/v1/chat/completions", "Continue a conversation", ChatRequest, ChatCompletion, ChatChunk
    ),
    Operation("post", "/v1/completions", "Continue a text", CompletionRequest, Completion, Completion),
    Operation("post", "/v1/embeddings", "Texts as vectors", EmbeddingRequest, EmbeddingList),
    Operation("delete", "/v1/models/{id}", "Forget an adapter of the project", answer=ModelDeleted),
    Operation("post", "/v1/adapters", "Send an adapter: multipart name, config, weights", answer=ModelCard),
    Operation("post", "/v1/load_lora_adapter", "Give a PEFT folder of the server a model name", LoadAdapter),
    Operation("post", "/v1/unload_lora_adapter", "Forget an adapter", UnloadAdapter),
    Operation("get", "/v1/files", "The project's files", answer=FileList),
    Operation("post", "/v1/files", "Send a file: multipart file, purpose, expires_after", answer=FileObject),
    Operation("get", "/v1/files/{id}", "One of them", answer=FileObject),
    Operation("get", "/v1/files/{id}/content", "Its bytes"),
    Operation("delete", "/v1/files/{id}", "Delete it", answer=Deleted),
    Operation("get", "/v1/batches", "The project's batches", answer=BatchList),
    Operation(
        "post", "/v1/batches", "Answer the requests of a file within a window", CreateBatch, BatchObject
    ),
    Operation("get", "/v1/batches/{id}", "One of them", answer=BatchObject),
    Operation("post", "/v1/batches/{id}/cancel", "Stop it; what was done is kept", answer=BatchObject),
    *(Operation(e.method, e.path, e.summary, e.body, e.answer) for e in organization.OPERATIONS),
    Operation("get", "/health", "Is the process alive?"),
    Operation("get", "/ready", "May traffic come? 503 until the engine is up, and while the service drains"),
    Operation("get", "/metrics", "Prometheus metrics"),
    Operation("get", "/openapi.json", "This description as OpenAPI 3.1"),
    Operation("get", "/docs", "This page"),
)


def openapi(service: Service) -> dict[str, Any]:
    kinds = [ErrorBody] + [k for o in OPERATIONS for k in (o.body, o.answer, o.chunk) if k is not None]
    _, components = msgspec.json.schema_components(
        dict.fromkeys(kinds), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Stoa: {service.model_id}", "version": stoa.__version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if service.keys_wanted:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _operation(operation: Operation) -> dict[str, Any]:
    answer = {"application/json": _schema(operation.answer)} if operation.answer else {_TEXT: {}}
    if operation.chunk is not None:
        answer["text/event-stream"] = _schema(operation.chunk)
    found: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "Success", "content": answer},
            "default": {"description": "Error", "content": {"application/json": _schema(ErrorBody)}},
        },
    }
    if operation.body is not None:
        content = {"application/json": _schema(operation.body)}
        found["requestBody"] = {"required": True, "content": content}
    names = re.findall(r"\{(\w+)\}", operation.path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return found


def _schema(kind: type[Any]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}


class DocsEndpoint:
    def __init__(self, service: Service) -> None:
        document = openapi(service)
        self._json = json.dumps(document, indent=1).encode()
        self._page = _page(document, service)

    async def openapi(self, request: Request) -> Response:
        return Response(self._json, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .2rem; font: 600 1.05rem ui-monospace, monospace; }
pre { background: #8882; padding: .8rem; overflow: auto; }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; font-size: .9rem; }
code { font-family: ui-monospace, monospace; } .required { color: #b30; }
:root { color-scheme: light dark; }
"""


def _page(document: dict[str, Any], service: Service) -> str:
    model = html.escape(service.model_id)
    example = html.escape(
        "from openai import OpenAI\n\n"
        'client = OpenAI(base_url="http://HOST:PORT/v1", api_key="…")\n'
        "answer = client.chat.completions.create(\n"
        f"    model={service.model_id!r}, messages=[{{'role': 'user', 'content': 'hello'}}]\n)"
    )
    sections = "".join(_section(o, document["components"]["schemas"]) for o in OPERATIONS)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Stoa: {model}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Stoa: {model}</h1>"
        "<p>An OpenAI-compatible service. An adapter is used by its name, in the field <code>model</code>. "
        'Machines read <a href="openapi.json">openapi.json</a>.</p>'
        f"<pre>{example}</pre>{sections}</body></html>"
    )


def _section(operation: Operation, schemas: dict[str, Any]) -> str:
    found = f"<h2>{operation.method.upper()} {operation.path}</h2><p>{html.escape(operation.summary)}</p>"
    if operation.body is None:
        return found
    schema = schemas[operation.body.__name__]
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{name}</code></td><td>{html.escape(_type(kind))}</td>"
        f"<td>{'<span class=required>required</span>' if name in required else ''}</td></tr>"
        for name, kind in schema["properties"].items()
    )
    return f"{found}<table>{rows}</table>"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(t for s in schema["anyOf"] if (t := _type(s)) != "null")
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    return str(schema.get("type", "any"))
