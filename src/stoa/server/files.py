"""/v1/files: what projects keep here, in the shapes of OpenAI's."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stoa.errors import InvalidRequest
from stoa.server.edge import note, project_of
from stoa.server.multipart import Begin, Event, events, rest_of_part, text_of_part
from stoa.server.organization.lists import Deleted, ObjectList, ends
from stoa.server.organization.query import query_reader
from stoa.server.wire import json_response, while_connected
from stoa.storage.files import Arrival, Files, StoredFile

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_BATCH_S = 30 * 86400  # how long a batch's input stays unless its owner says otherwise
ExpirySeconds = Annotated[int, Meta(ge=3600, le=30 * 86400)]


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"
    status_details: str | None = None


class FileList(ObjectList[FileObject], frozen=True):
    pass


class FileQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: ExpirySeconds


_read_query = query_reader(FileQuery)


class FilesEndpoint:
    def __init__(self, files: Files) -> None:
        self._files = files

    def routes(self) -> Iterator[Route]:
        yield Route("/v1/files", self._many, methods=["GET", "POST"])
        yield Route("/v1/files/{id}", self._one, methods=["GET", "DELETE"])
        yield Route("/v1/files/{id}/content", self.content, methods=["GET"])

    async def _many(self, request: Request) -> Response:
        return await (self.create if request.method == "POST" else self.list)(request)

    async def _one(self, request: Request) -> Response:
        return await (self.delete if request.method == "DELETE" else self.retrieve)(request)

    async def create(self, request: Request) -> Response:
        """Multipart: `file`, `purpose`, `expires_after[anchor]`, `expires_after[seconds]`, in any order."""
        project_id = project_of(request, "file.write")
        async with self._files.arrival(project_id) as arrival, aclosing(events(request)) as parts:
            filename, fields = await _take_in(arrival, parts)
            if filename is None:
                raise InvalidRequest("Missing required parameter: 'file'", param="file")
            purpose, expires_after_s = _said(fields)
            note(request, file=arrival.id, bytes=arrival.size_bytes)
            stored = await arrival.finish(filename, purpose, expires_after_s=expires_after_s)
        return json_response(_object(stored))

    async def list(self, request: Request) -> Response:
        project_id, query = project_of(request, "file.read"), _read_query(request)
        found, more = await self._files.list(
            project_id, purpose=query.purpose, after=query.after, limit=query.limit, order=query.order
        )
        data = [_object(file) for file in found]
        return json_response(FileList(data, *ends(data), more))

    async def retrieve(self, request: Request) -> Response:
        file = await self._files.get(project_of(request, "file.read"), request.path_params["id"])
        return json_response(_object(file))

    async def content(self, request: Request) -> Response:
        file = await self._files.get(project_of(request, "file.read"), request.path_params["id"])
        content = self._files.content(file)
        first = await anext(content, b"")  # what cannot be read is an error, not a broken download
        return Content(file, first, content)

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        await self._files.delete(project_of(request, "file.write"), file_id)
        return json_response(Deleted(file_id, "file"))


class Content(Response):
    """A file's bytes, as they are read. The file is closed in any case."""

    media_type = "application/octet-stream"

    def __init__(self, file: StoredFile, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            headers={
                "Content-Length": str(file.size_bytes),
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
                "X-Content-Type-Options": "nosniff",
            }
        )
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for piece in self._rest:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _take_in(arrival: Arrival, parts: AsyncGenerator[Event, None]) -> tuple[str | None, dict[str, str]]:
    """Writes the file; returns its name, None if there is none, and the other fields."""
    filename: str | None = None
    fields: dict[str, str] = {}
    async for part in parts:
        if not isinstance(part, Begin):
            continue
        if part.name in fields or (part.name == "file" and filename is not None):
            raise InvalidRequest(f"'{part.name}' is given more than once", param=part.name)
        if part.name != "file":
            fields[part.name] = await text_of_part(parts, part.name)
        elif part.filename is None:
            raise InvalidRequest("'file' must be a file, with a name", param="file")
        else:
            filename = _bare_name(part.filename)
            await arrival.write(rest_of_part(parts))
    return filename, fields


def _said(fields: dict[str, str]) -> tuple[str, int | None]:
    """The purpose, and after how long the file expires. Raises InvalidRequest."""
    purpose = fields.pop("purpose", None)
    if purpose is None:
        raise InvalidRequest("Missing required parameter: 'purpose'", param="purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"Invalid value for 'purpose': {purpose[:50]!r}; accepted: {', '.join(PURPOSES)}", param="purpose"
        )
    expiry = {name[14:-1]: fields.pop(name) for name in list(fields) if name.startswith("expires_after[")}
    if fields:
        name = next(iter(fields))
        raise InvalidRequest(f"Unrecognized request argument supplied: {name[:100]}", param=name[:100])
    if not expiry:
        return purpose, _BATCH_S if purpose == "batch" else None
    try:
        return purpose, msgspec.convert(expiry, ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError:
        raise InvalidRequest(
            "'expires_after' takes anchor=created_at, and seconds from 3600 to 2592000", param="expires_after"
        ) from None


def _bare_name(given: str) -> str:
    """Without folders, and without what cannot be printed."""
    name = given.replace("\\", "/").rpartition("/")[2]
    shown = "".join(c if c.isprintable() else "_" for c in unicodedata.normalize("NFC", name))
    return shown[:255] or "file"


def _object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )
