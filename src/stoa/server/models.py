"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoa.server.edge import project_of
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
        project_id = project_of(request, "model.read")
        entries = await asyncio.to_thread(self._service.adapters.list, project_id)
        return json_response(ModelList([self._base(), *(adapter_card(e, self._service) for e in entries)]))

    async def get(self, request: Request) -> Response:
        name = request.path_params["id"]
        entry = await self._service.adapter(project_of(request, "model.read"), name)
        if entry is None:
            return json_response(self._base())
        return json_response(msgspec.structs.replace(adapter_card(entry, self._service), id=name))

    def _base(self) -> ModelCard:
        service = self._service
        return _card(service, service.model_id, service.created, service.model_id, None)


def adapter_card(entry: AdapterEntry, service: Service) -> ModelCard:
    return _card(service, entry.name, entry.created, f"{entry.name}@{entry.version}", service.model_id)


def _card(service: Service, name: str, created: int, root: str, parent: str | None) -> ModelCard:
    permission = ModelPermission(f"modelperm-{name}", created)
    return ModelCard(name, created, root, parent, service.replica.max_model_len, [permission])
