"""/v1/batches: many requests in one file, answered when there is room; in the shapes of OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stoa.batches import Batches
from stoa.batches.batch import Batch, LineError
from stoa.server.edge import note, principal_of, project_of
from stoa.server.files import ExpiresAfter
from stoa.server.organization.lists import ObjectList, ends
from stoa.server.organization.query import query_reader
from stoa.server.wire import body_reader, json_response
from stoa.tenancy.pages import Cut

SCOPE = "model.request"
_BODY_BYTES = 64 << 10


class CreateBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    data: list[LineError]
    object: str = "list"


class BatchCounts(msgspec.Struct, frozen=True):
    total: int
    completed: int
    failed: int


class BatchInputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class BatchOutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    errors: BatchErrors | None
    model: str | None
    output_file_id: str | None
    error_file_id: str | None
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    object: str = "batch"


class BatchList(ObjectList[BatchObject], frozen=True):
    pass


class BatchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


_read_create = body_reader(CreateBatch)
_read_query = query_reader(BatchQuery)


class BatchesEndpoint:
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def routes(self) -> Iterator[Route]:
        yield Route("/v1/batches", self._many, methods=["GET", "POST"])
        yield Route("/v1/batches/{id}", self.retrieve, methods=["GET"])
        yield Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"])

    async def _many(self, request: Request) -> Response:
        return await (self.create if request.method == "POST" else self.list)(request)

    async def create(self, request: Request) -> Response:
        project_of(request, SCOPE)
        body = await _read_create(request, _BODY_BYTES)
        expiry = body.output_expires_after
        batch = await self._batches.create(
            principal_of(request),
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            metadata=body.metadata,
            output_expires_after_s=None if expiry is None else expiry.seconds,
        )
        note(request, batch=batch.id)
        return json_response(_object(batch))

    async def list(self, request: Request) -> Response:
        project_id, query = project_of(request, SCOPE), _read_query(request)
        cut = Cut(after=query.after, limit=query.limit, order=query.order)
        page = await self._batches.list(project_id, cut)
        data = [_object(batch) for batch in page.items]
        return json_response(BatchList(data, *ends(data), page.has_more))

    async def retrieve(self, request: Request) -> Response:
        batch = await self._batches.get(project_of(request, SCOPE), request.path_params["id"])
        return json_response(_object(batch))

    async def cancel(self, request: Request) -> Response:
        batch = await self._batches.cancel(project_of(request, SCOPE), request.path_params["id"])
        return json_response(_object(batch))


def _object(batch: Batch) -> BatchObject:
    times: dict[str, Any] = {f"{status}_at": at for status, at in batch.times.items()}
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        errors=BatchErrors(list(batch.errors)) if batch.errors else None,
        model=batch.model,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        request_counts=BatchCounts(batch.total, batch.completed, batch.failed),
        usage=_usage(batch),
        metadata=None if batch.metadata is None else dict(batch.metadata),
        **times,
    )


def _usage(batch: Batch) -> BatchUsage:
    return BatchUsage(
        input_tokens=batch.input_tokens,
        input_tokens_details=BatchInputDetails(batch.cached_tokens),
        output_tokens=batch.output_tokens,
        output_tokens_details=BatchOutputDetails(0),
        total_tokens=batch.input_tokens + batch.output_tokens,
    )
