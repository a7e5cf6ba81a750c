"""POST /v1/embeddings: the mean of the last hidden states, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from stoa.engine.request import GenerationRequest
from stoa.errors import ContextLengthExceeded, EngineUnavailable
from stoa.server.edge import note, principal_of, project_of
from stoa.server.params import out_of_range, service_class
from stoa.server.problems import event_error
from stoa.server.prompts import prompt_token_ids
from stoa.server.service import Service, adapter_name
from stoa.server.wire import body_bytes, body_reader, close, json_response, while_connected

_AT_ONCE = 32  # inputs of one request in the engine, so that one request does not fill the queue
Vector = NDArray[np.float32]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class EmbeddingsEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._read = body_reader(EmbeddingRequest)

    async def endpoint(self, request: Request) -> Response:
        body = await self._read(request, self._service.max_body_bytes)
        note(request, model=body.model)
        if body.encoding_format not in (None, "float", "base64"):
            raise out_of_range("encoding_format", body.encoding_format, "float, base64")
        if body.dimensions is not None and body.dimensions < 1:
            raise out_of_range("dimensions", body.dimensions, "1 or above")
        adapter = await self._service.adapter(project_of(request, "model.request"), body.model)
        prompts = await self._service.lanes.run(body_bytes(request), lambda: self._prompts(body))
        group_id = f"embd-{secrets.token_hex(16)}"
        ref = None if adapter is None else adapter.ref
        service = service_class(request)
        requests = [
            GenerationRequest(
                id=f"{group_id}-{i}", prompt_token_ids=p, adapter=ref, pooling="mean", service_class=service
            )
            for i, p in enumerate(prompts)
        ]
        ticket = await self._service.metering.admit(
            principal_of(request), requests, model=body.model, adapter=adapter_name(adapter),
            endpoint="embeddings", request_id=group_id,
        )  # fmt: skip
        try:
            vectors = await while_connected(request.receive, self._embed(ticket.requests))
        finally:
            ticket.close()
        data = [Embedding(i, _shown(v, body)) for i, v in enumerate(vectors)]
        tokens = sum(map(len, prompts))
        note(request, prompt_tokens=tokens)
        usage = EmbeddingUsage(tokens, tokens)
        return json_response(EmbeddingList(data, body.model, usage), headers=ticket.headers)

    def _prompts(self, body: EmbeddingRequest) -> list[list[int]]:
        limit = self._service.replica.max_model_len
        prompts = prompt_token_ids(body.input, "input", self._service, self._service.max_inputs)
        longest = max(map(len, prompts))
        if longest > limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens, however you requested {longest} "
                "tokens in one input. Please reduce the length of the input.",
                param="input",
            )
        return prompts

    async def _embed(self, requests: list[GenerationRequest]) -> list[Vector]:
        """All or none: the first error cancels the others."""
        gate = asyncio.Semaphore(min(_AT_ONCE, self._service.max_queue))

        async def one(asked: GenerationRequest) -> Vector:
            async with gate:
                return await self._embed_one(asked)

        tasks = [asyncio.ensure_future(one(asked)) for asked in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _embed_one(self, asked: GenerationRequest) -> Vector:
        stream = self._service.replica.generate(asked)
        try:
            async for batch in stream:
                for event in batch:
                    if event.finish_reason in ("error", "cancelled"):
                        raise event_error(event)
                    if event.embedding is not None:
                        return np.asarray(event.embedding, np.float32)
        finally:
            await close(stream)
        raise EngineUnavailable("the engine ended the stream before the embedding was complete")


def _shown(vector: Vector, body: EmbeddingRequest) -> list[float] | str:
    """Cut to `dimensions`, scaled to length 1, and written as asked."""
    if body.dimensions is not None:
        if body.dimensions > len(vector):
            raise out_of_range("dimensions", body.dimensions, f"between 1 and {len(vector)}")
        vector = vector[: body.dimensions]
    length = float(np.linalg.norm(vector))
    vector = vector / length if length > 0 else vector
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(x) for x in vector]
