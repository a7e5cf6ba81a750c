"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoa.engine.request import GenerationRequest, Grammar, SamplingParams
from stoa.errors import InvalidRequest, StoaError
from stoa.server.answers import ChatLogprobs, UsageBody, chat_logprobs, shown_logprobs, usage_body
from stoa.server.chat_body import ChatRequest, check_chat, conversation, response_grammar
from stoa.server.edge import note, principal_of, project_of
from stoa.server.generation import Generation, Piece, Usage, collect
from stoa.server.messages import CalledFunction, ToolCall, template_messages
from stoa.server.metrics import Metrics
from stoa.server.params import completion_room, sampling_params, service_class
from stoa.server.problems import error_body
from stoa.server.service import Service, adapter_name
from stoa.server.tool_calls import CallDelta, CallParser, ToolFormat
from stoa.server.tools import ToolSpec, call_grammar, chosen_tools, detect_format, needs_special_tokens
from stoa.server.wire import DONE, EventStream, body_bytes, body_reader, json_response, sse, while_connected


class ChatMessage(msgspec.Struct, omit_defaults=True):
    content: str | None
    role: str = msgspec.field(default_factory=lambda: "assistant")  # a factory: never omitted
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatCompletion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    service_tier: str | None = None


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


@dataclass(frozen=True)
class _Prepared:
    """A request ready to run. `form`: how calls are to be found in the answer, if at all."""

    prompt_token_ids: list[int]
    params: SamplingParams
    form: ToolFormat | None
    names: frozenset[str]


class ChatEndpoint:
    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._read = body_reader(ChatRequest)
        self._form: ToolFormat | None = None
        self._form_known = False

    async def endpoint(self, request: Request) -> Response:
        body = await self._read(request, self._service.max_body_bytes)
        note(request, model=body.model, stream=bool(body.stream))
        check_chat(body, self._service)
        adapter = await self._service.adapter(project_of(request, "model.request"), body.model)
        # Rendering and encoding a long conversation must not hold up other streams.
        ready = await self._service.lanes.run(body_bytes(request), lambda: self._prepare(body))
        answer_id = f"chatcmpl-{secrets.token_hex(16)}"
        asked = GenerationRequest(
            id=answer_id,
            prompt_token_ids=ready.prompt_token_ids,
            params=ready.params,
            n=body.n or 1,
            adapter=None if adapter is None else adapter.ref,
            source=conversation(body) if self._service.keeps_source else b"",
            service_class=service_class(request, body.service_tier),
        )
        ticket = await self._service.metering.admit(
            principal_of(request),
            [asked],
            model=body.model,
            adapter=adapter_name(adapter),
            request_id=answer_id,
        )
        generation = Generation(self._service.replica, ticket, self._metrics)
        try:
            if body.stream:
                await while_connected(request.receive, generation.start())
                stream = self._stream(request, body, ready, generation, answer_id)
                return EventStream(stream, generation, ticket.headers)
            found = await while_connected(request.receive, collect(generation, body.n or 1))
        except InvalidRequest as error:
            raise _blame_tools(error, body) from None
        _note_usage(request, generation.usage)
        return json_response(
            self._whole(body, ready, found, generation.usage, answer_id), headers=ticket.headers
        )

    # -- the way in

    def _prepare(self, body: ChatRequest) -> _Prepared:
        service, tokenizer = self._service, self._service.tokenizer
        messages = template_messages(body.messages)
        tools, must = chosen_tools(body.tool_choice, body.tools)
        form = self._tool_format() if tools else None
        shown = [msgspec.to_builtins(t) for t in body.tools or ()] if tools else None
        extra = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            extra.setdefault("reasoning_effort", body.reasoning_effort)
        generate = True if body.add_generation_prompt is None else body.add_generation_prompt
        text = tokenizer.apply_chat_template(messages, shown, generate, **extra)
        # The template has written the special tokens.
        prompt = tokenizer.encode(text, add_special_tokens=False)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        room = completion_room(
            len(prompt), asked, None, service.replica.max_model_len, what="messages", param="messages"
        )
        params = sampling_params(
            body,
            room,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=self._grammar(body, tools, must, form),
            keep_special=form is not None and needs_special_tokens(form, tokenizer),
        )
        return _Prepared(prompt, params, form, frozenset(t.function.name for t in tools))

    def _tool_format(self) -> ToolFormat:
        if not self._form_known:
            self._form, self._form_known = detect_format(self._service.tokenizer), True
        if self._form is None:
            raise InvalidRequest(
                "'tools' is not supported: this model's chat template knows no tools, or writes calls in a "
                "way that is not known here (known: Hermes/Qwen, Llama 3.1, Mistral)",
                param="tools",
            )
        return self._form

    def _grammar(
        self, body: ChatRequest, tools: list[ToolSpec], must: bool, form: ToolFormat | None
    ) -> Grammar | None:
        answer = response_grammar(body.response_format)
        if form is None or not (must or answer):
            return answer
        parallel = body.parallel_tool_calls is not False
        return call_grammar(
            form, tools, self._service.tokenizer, parallel=parallel, answer=None if must else answer
        )

    # -- the way out

    def _parser(self, body: ChatRequest, ready: _Prepared) -> CallParser | None:
        if ready.form is None:
            return None
        return CallParser(ready.form, ready.names, parallel=body.parallel_tool_calls is not False)

    def _logprobs(self, body: ChatRequest, piece: Piece) -> ChatLogprobs | None:
        if not body.logprobs:
            return None
        return chat_logprobs(shown_logprobs(piece, self._service.tokenizer), self._service.tokenizer)

    def _whole(
        self, body: ChatRequest, ready: _Prepared, found: list[Piece], usage: Usage, answer_id: str
    ) -> ChatCompletion:
        choices = []
        for piece in found:
            parser = self._parser(body, ready)
            message = _message(piece.text, parser)
            choices.append(
                ChatChoice(
                    piece.index,
                    message,
                    self._logprobs(body, piece),
                    _reason(piece.finish_reason, parser),
                    piece.stop_reason,
                )
            )
        return ChatCompletion(
            answer_id,
            "chat.completion",
            int(time.time()),
            body.model,
            choices,
            usage_body(usage),
            "flex" if body.service_tier == "flex" else "default",
        )

    async def _stream(
        self, request: Request, body: ChatRequest, ready: _Prepared, generation: Generation, answer_id: str
    ) -> AsyncIterator[bytes]:
        chunk = ChatChunk(answer_id, "chat.completion.chunk", int(time.time()), body.model, [])
        if body.include_usage:
            chunk.usage = None
        parsers = [self._parser(body, ready) for _ in range(generation.n)]

        def event(choice: ChunkChoice) -> bytes:
            chunk.choices = [choice]
            return sse(chunk)

        try:
            yield b"".join(
                event(ChunkChoice(i, ChatDelta(role="assistant", content=""))) for i in range(generation.n)
            )
            async for pieces in generation:
                events = []
                for piece in pieces:
                    parser = parsers[piece.index]
                    delta = _delta(piece, parser)
                    logprobs = self._logprobs(body, piece) if piece.logprobs else None
                    reason = _reason(piece.finish_reason, parser)
                    if delta.content is not None or delta.tool_calls or reason or logprobs:
                        events.append(event(ChunkChoice(piece.index, delta, logprobs, reason)))
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


def _blame_tools(error: InvalidRequest, body: ChatRequest) -> InvalidRequest:
    """A grammar that cannot be compiled names response_format, also where it came from the tools."""
    if body.tools and body.response_format is None and error.param in ("response_format", None):
        error.param = "tools"
    return error


def _reason(reason: str | None, parser: CallParser | None) -> str | None:
    return "tool_calls" if reason == "stop" and parser is not None and parser.num_calls else reason


def _message(text: str, parser: CallParser | None) -> ChatMessage:
    if parser is None:
        return ChatMessage(text)
    content, calls = parser.push(text)
    rest, _ = parser.finish()
    content += rest
    if not calls:
        return ChatMessage(content)
    made = [ToolCall(c.id or "", CalledFunction(c.name or "", c.arguments)) for c in calls]
    return ChatMessage(content or None, tool_calls=made)


def _delta(piece: Piece, parser: CallParser | None) -> ChatDelta:
    if parser is None:
        return ChatDelta(content=piece.text or None)
    content, calls = parser.push(piece.text)
    if piece.finish_reason is not None:
        content += parser.finish()[0]
    return ChatDelta(content=content or None, tool_calls=[_call_delta(c) for c in calls] or None)


def _call_delta(call: CallDelta) -> ToolCallDelta:
    function = FunctionDelta(call.name, call.arguments)
    return ToolCallDelta(call.index, function, call.id, None if call.id is None else "function")
