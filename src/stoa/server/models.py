"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoa.server.service import Service
from stoa.server.wire import json_response

if TYPE_CHECKING:
    from stoa.engine.adapters.registry import AdapterEntry


class ModelPermission(msgspec.Struct, frozen=True):
    id: str
    created: int
    object: str = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct, frozen=True):
    """`parent` is the base model of an adapter; `root` is what stands behind the name."""

    id: str
    created: int
    root: str
    parent: str | None
    max_model_len: int
    permission: list[ModelPermission]
    object: str = "model"
    owned_by: str = "stoa"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"


class ModelsEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        entries = await asyncio.to_thread(self._service.registry.list)
        return json_response(ModelList([self._base(), *map(self._card, entries)]))

    async def get(self, request: Request) -> Response:
        name = request.path_params["id"]
        entry = await self._service.adapter(name)
        if entry is None:
            return json_response(self._base())
        return json_response(msgspec.structs.replace(self._card(entry), id=name))

    def _base(self) -> ModelCard:
        return self._make(self._service.model_id, self._service.created, self._service.model_id, None)

    def _card(self, entry: AdapterEntry) -> ModelCard:
        root = f"{entry.name}@{entry.version}"
        return self._make(entry.name, entry.created, root, self._service.model_id)

    def _make(self, name: str, created: int, root: str, parent: str | None) -> ModelCard:
        permission = ModelPermission(f"modelperm-{name}", created)
        return ModelCard(name, created, root, parent, self._service.replica.max_model_len, [permission])
