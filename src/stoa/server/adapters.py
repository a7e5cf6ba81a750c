"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: administrators name a folder of the server.
POST /v1/adapters: projects send one. DELETE /v1/models/{id} forgets a project's own, as OpenAI has it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from stoa.engine.adapters.names import CONFIG_FILE, WEIGHTS_FILE
from stoa.errors import (
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
)
from stoa.server.edge import note, principal_of, project_of
from stoa.server.models import adapter_card
from stoa.server.service import Service
from stoa.server.wire import body_reader, json_response
from stoa.tenancy.principal import DEFAULT_ORGANIZATION

if TYPE_CHECKING:
    from stoa.engine.adapters.registry import AdapterEntry, AdapterRegistry

_UPLOAD_S = 600


class LoadAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`load_inplace`: an adapter of that name is replaced. `project`: whose it is to be, by default the caller's;
    `public`: everybody's."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    project: str | None = None
    public: bool = False


class UnloadAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lora_name: str
    lora_int_id: int | None = None  # vLLM's; names are enough here
    project: str | None = None
    public: bool = False


class ModelDeleted(msgspec.Struct, frozen=True):
    id: str
    object: str = "model"
    deleted: bool = True


class AdaptersEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._read_load = body_reader(LoadAdapter)
        self._read_unload = body_reader(UnloadAdapter)

    async def load(self, request: Request) -> Response:
        body = await self._read_load(request, self._service.max_body_bytes)
        note(request, adapter=body.lora_name)
        registry = await self._registry(request, body)
        if not body.lora_path or "\0" in body.lora_path:
            raise InvalidRequest("'lora_path' must be the path of a PEFT folder", param="lora_path")
        await self._add(registry, body.lora_name, Path(body.lora_path), replace=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully")

    async def unload(self, request: Request) -> Response:
        body = await self._read_unload(request, self._service.max_body_bytes)
        note(request, adapter=body.lora_name)
        try:
            await self._remove(await self._registry(request, body), body.lora_name)
        except ModelNotFound as error:
            raise ModelNotFound(error.message, param="lora_name") from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully")

    async def upload(self, request: Request) -> Response:
        """Multipart: `name`, `config` (adapter_config.json), `weights` (adapter_model.safetensors), `replace`."""
        registry = self._service.adapters.of(project_of(request, "adapter.write"))
        self._check_size(request, registry.max_bytes)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="stoa-upload-"))
        try:
            async with asyncio.timeout(_UPLOAD_S), request.form(max_files=2, max_fields=2) as form:
                name, replace = form.get("name"), form.get("replace")
                if not isinstance(name, str) or replace not in (None, "true", "false"):
                    raise InvalidRequest("'name' must be text, 'replace' true or false", param="name")
                for field, file in (("config", CONFIG_FILE), ("weights", WEIGHTS_FILE)):
                    part = form.get(field)
                    if not isinstance(part, UploadFile):
                        raise InvalidRequest(f"'{field}' must be the file {file}", param=field)
                    await asyncio.to_thread(_save, part, folder / file)
            note(request, adapter=name)
            entry = await self._add(registry, name, folder, replace=replace == "true")
        except InvalidAdapter as error:
            message = error.message.replace(f"{folder}/", "").replace(str(folder), "the upload")
            raise type(error)(message, param=_FIELDS.get(error.param or "", error.param)) from None
        except TimeoutError:
            raise RequestTimeout(f"The files did not arrive within {_UPLOAD_S} s") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return json_response(adapter_card(entry, self._service), 201)

    async def delete(self, request: Request) -> Response:
        name = request.path_params["id"]
        note(request, adapter=name)
        own = self._service.adapters.of(project_of(request, "adapter.write"))
        try:
            await self._remove(own, name)
        except ModelNotFound:
            if await _id(self._service.adapters.public, name) is None:
                raise
            raise ModelNotFound(f"{name!r} is public; administrators can remove it", param="model") from None
        return json_response(ModelDeleted(name))

    # -- inside

    async def _registry(self, request: Request, body: LoadAdapter | UnloadAdapter) -> AdapterRegistry:
        """The one that an administrator means."""
        principal = principal_of(request)
        if not principal.is_admin:
            raise PermissionDenied(
                "folders of the server are for administrators; send the files to POST /v1/adapters instead"
            )
        project_id = body.project or principal.project_id
        if body.public:
            if principal.organization_id != DEFAULT_ORGANIZATION:
                raise PermissionDenied("public adapters are for administrators of the default organization")
            return self._service.adapters.public
        if project_id is None:
            raise InvalidRequest(
                "an admin key has no project; give 'project', or 'public': true (stoa adapter: --project, --public)",
                param="project",
            )
        if body.project is not None and self._service.office is not None:
            await self._service.office.projects.get(principal.organization_id, body.project)
        return self._service.adapters.of(project_id)

    async def _add(
        self, registry: AdapterRegistry, name: str, folder: Path, *, replace: bool
    ) -> AdapterEntry:
        before = await _id(registry, name) if replace else None
        entry = await asyncio.to_thread(registry.add, name, folder, replace=replace)
        with contextlib.suppress(
            EngineUnavailable
        ):  # registered all the same: the engine reads it when it is back
            if before not in (None, entry.ref.id):
                await self._service.replica.forget(before or "")
            await self._service.replica.warm(entry.ref)
        return entry

    async def _remove(self, registry: AdapterRegistry, name: str) -> None:
        adapter_id = await _id(registry, name)
        await asyncio.to_thread(registry.remove, name)
        if adapter_id is not None:
            with contextlib.suppress(EngineUnavailable):  # then there is nothing to forget
                await self._service.replica.forget(adapter_id)

    def _check_size(self, request: Request, limit: int) -> None:
        declared = request.headers.get("content-length", "")
        if not declared.isdecimal():
            raise InvalidRequest("the upload must say its Content-Length")
        if int(declared) > limit:
            raise RequestTooLarge(
                f"The upload is larger than any adapter of this model could be; accepted: up to {limit} bytes"
            )


_FIELDS = {"lora_name": "name", "lora_path": "weights"}


def _save(part: UploadFile, path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(part.file, file)


async def _id(registry: AdapterRegistry, name: str) -> str | None:
    try:
        return (await asyncio.to_thread(registry.get, name)).ref.id
    except (ModelNotFound, InvalidAdapter):
        return None
