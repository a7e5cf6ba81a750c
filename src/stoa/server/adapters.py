"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from stoa.errors import EngineUnavailable, InvalidAdapter, InvalidRequest, ModelNotFound
from stoa.server.edge import note
from stoa.server.service import Service
from stoa.server.wire import body_reader


class LoadAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`load_inplace`: an adapter of that name is replaced."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lora_name: str
    lora_int_id: int | None = None  # vLLM's; names are enough here


class AdaptersEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._read_load = body_reader(LoadAdapter)
        self._read_unload = body_reader(UnloadAdapter)

    async def load(self, request: Request) -> Response:
        body = await self._read_load(request, self._service.max_body_bytes)
        note(request, adapter=body.lora_name)
        if not body.lora_path or "\0" in body.lora_path:
            raise InvalidRequest("'lora_path' must be the path of a PEFT folder", param="lora_path")
        registry = self._service.registry
        before = await self._id(body.lora_name) if body.load_inplace else None
        entry = await asyncio.to_thread(
            registry.add, body.lora_name, Path(body.lora_path), replace=body.load_inplace
        )
        try:
            if before not in (None, entry.id):
                await self._service.replica.forget(before or "")
            await self._service.replica.warm(entry.ref)
        except EngineUnavailable:
            pass  # the name is registered all the same; the engine reads the adapter when it is back
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully")

    async def unload(self, request: Request) -> Response:
        body = await self._read_unload(request, self._service.max_body_bytes)
        note(request, adapter=body.lora_name)
        adapter_id = await self._id(body.lora_name)
        try:
            await asyncio.to_thread(self._service.registry.remove, body.lora_name)
        except ModelNotFound as error:
            raise ModelNotFound(error.message, param="lora_name") from None
        try:
            if adapter_id is not None:
                await self._service.replica.forget(adapter_id)
        except EngineUnavailable:
            pass  # an engine that is not there has nothing to forget
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully")

    async def _id(self, name: str) -> str | None:
        try:
            return (await asyncio.to_thread(self._service.registry.get, name)).id
        except (ModelNotFound, InvalidAdapter):
            return None
