"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoa.engine.request import GenerationRequest, ServiceClass
from stoa.errors import InvalidRequest, StoaError
from stoa.server.answers import TextLogprobs, UsageBody, shown_logprobs, text_logprobs, usage_body
from stoa.server.edge import note, principal_of, project_of
from stoa.server.generation import Generation, Piece, Usage, collect
from stoa.server.metrics import Metrics
from stoa.server.params import (
    SamplingFields,
    check_logprobs,
    check_ranges,
    completion_room,
    out_of_range,
    sampling_params,
    service_class,
)
from stoa.server.problems import error_body
from stoa.server.prompts import prompt_token_ids
from stoa.server.service import Service, adapter_name
from stoa.server.structured import StructuredOutputs, structured_grammar
from stoa.server.wire import DONE, EventStream, body_bytes, body_reader, json_response, sse, while_connected

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None
    return_token_ids: bool | None = None  # this and what follows as vLLM has them
    return_tokens_as_token_ids: bool | None = None  # logprobs name tokens "token_id:N"
    structured_outputs: StructuredOutputs | None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | msgspec.UnsetType = (
        msgspec.UNSET
    )  # with the end token, which is no part of the text


class Completion(msgspec.Struct):
    """A whole answer, and in streams a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


@dataclass
class _Shown:
    """How far the text of one choice has come."""

    echo: str
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        self.offset = len(self.echo)


def check_completion(body: CompletionRequest, service: Service) -> None:
    """Raises InvalidRequest naming the first field that is not accepted."""
    check_ranges(body, service)
    check_logprobs("logprobs", body.logprobs)
    if body.suffix:
        raise InvalidRequest("'suffix' is not supported; put all text into 'prompt'", param="suffix")
    if body.best_of not in (None, body.n or 1):
        raise out_of_range("best_of", body.best_of, "the value of 'n'")
    structured_grammar(body.structured_outputs)
    if body.echo and body.logprobs is not None:
        raise InvalidRequest("'echo' is not supported together with 'logprobs'", param="echo")


class CompletionsEndpoint:
    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._read = body_reader(CompletionRequest)

    async def endpoint(self, request: Request) -> Response:
        body = await self._read(request, self._service.max_body_bytes)
        note(request, model=body.model, stream=bool(body.stream))
        check_completion(body, self._service)
        project_id = project_of(request, "model.request")
        adapter = await self._service.adapter(project_id, body.model)
        answer_id = f"cmpl-{secrets.token_hex(16)}"
        service = service_class(request, body.service_tier)
        requests, shown = await self._service.lanes.run(
            body_bytes(request), lambda: self._prepare(body, answer_id, service)
        )
        if adapter is not None:
            requests = [msgspec.structs.replace(r, adapter=adapter.ref) for r in requests]
        ticket = await self._service.metering.admit(
            principal_of(request),
            requests,
            model=body.model,
            adapter=adapter_name(adapter),
            request_id=answer_id,
        )
        generation = Generation(self._service.replica, ticket, self._metrics)
        if body.stream:
            await while_connected(request.receive, generation.start())
            stream = self._stream(request, body, shown, generation, answer_id)
            return EventStream(stream, generation, ticket.headers)
        found = await while_connected(request.receive, collect(generation, len(shown)))
        _note_usage(request, generation.usage)
        choices = [self._choice(body, piece, shown[piece.index]) for piece in found]
        usage = usage_body(generation.usage)
        return json_response(
            Completion(answer_id, "text_completion", int(time.time()), body.model, choices, usage),
            headers=ticket.headers,
        )

    def _prepare(
        self, body: CompletionRequest, answer_id: str, class_: ServiceClass
    ) -> tuple[list[GenerationRequest], list[_Shown]]:
        """One request for each prompt, and where the text of each choice begins."""
        service, n = self._service, body.n or 1
        prompts = prompt_token_ids(body.prompt, "prompt", service, service.max_choices)
        if len(prompts) * n > service.max_choices:
            raise out_of_range("n", n, f"n times prompts up to {service.max_choices}")
        if len(prompts) > service.max_queue:
            raise out_of_range(
                "prompt", f"{len(prompts)} texts", f"up to {service.max_queue}, the queue's length"
            )
        requests, shown = [], []
        for i, prompt in enumerate(prompts):
            room = completion_room(
                len(prompt),
                body.max_tokens,
                DEFAULT_MAX_TOKENS,
                service.replica.max_model_len,
                what="prompt",
                param="prompt",
            )
            requests.append(
                GenerationRequest(
                    id=f"{answer_id}-{i}",
                    prompt_token_ids=prompt,
                    params=sampling_params(
                        body,
                        room,
                        logprobs=body.logprobs,
                        grammar=structured_grammar(body.structured_outputs),
                    ),
                    n=n,
                    service_class=class_,
                )
            )
            echo = self._echo(body, prompt, i) if body.echo else ""
            shown += [_Shown(echo) for _ in range(n)]
        return requests, shown

    def _echo(self, body: CompletionRequest, prompt: list[int], i: int) -> str:
        """The prompt as it was given, or as the text of its tokens."""
        given = body.prompt if isinstance(body.prompt, str) else body.prompt[i]
        return given if isinstance(given, str) else self._service.tokenizer.decode(prompt)

    def _choice(self, body: CompletionRequest, piece: Piece, shown: _Shown) -> CompletionChoice:
        logprobs, tokenizer, by_id = None, self._service.tokenizer, bool(body.return_tokens_as_token_ids)
        if body.logprobs is not None:
            found = piece.logprobs if by_id else shown_logprobs(piece, tokenizer)
            logprobs, shown.offset = text_logprobs(found, tokenizer, shown.offset, by_id=by_id)
        text, shown.echo = shown.echo + piece.text, ""
        choice = CompletionChoice(piece.index, text, logprobs, piece.finish_reason, piece.stop_reason)
        if body.return_token_ids:
            choice.token_ids = piece.token_ids
        return choice

    async def _stream(
        self,
        request: Request,
        body: CompletionRequest,
        shown: list[_Shown],
        generation: Generation,
        answer_id: str,
    ) -> AsyncIterator[bytes]:
        chunk = Completion(answer_id, "text_completion", int(time.time()), body.model, [])
        if body.include_usage:
            chunk.usage = None
        try:
            async for pieces in generation:
                events = []
                for piece in pieces:
                    choice = self._choice(body, piece, shown[piece.index])
                    tokens = body.return_token_ids and piece.token_ids
                    if choice.text or choice.finish_reason or piece.logprobs or tokens:
                        chunk.choices = [choice]
                        events.append(sse(chunk))
                if events:
                    yield b"".join(events)
            if body.include_usage:
                chunk.choices, chunk.usage = [], usage_body(generation.usage)
                yield sse(chunk)
            yield DONE
        except StoaError as error:
            note(request, error=error.message)
            yield b"event: error\ndata: " + error_body(error) + b"\n\n"
        finally:
            _note_usage(request, generation.usage)


def _note_usage(request: Request, usage: Usage) -> None:
    note(request, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
