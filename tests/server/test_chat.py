"""Conversations, whole and streamed, through the official client."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, InternalServerError, RateLimitError

from stoa.engine.request import GenerationRequest, Grammar
from stoa.errors import EngineUnavailable, InvalidAdapter, QueueFull
from tests.server.conftest import make_service, official
from tests.server.fakes import MAX_MODEL_LEN, FakeRegistry, FakeReplica, make_tokenizer

HI: Any = [{"role": "user", "content": "hi"}]


async def test_a_whole_answer(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Text, reason, usage, and a request that has what the template made."""
    answer = await client.chat.completions.create(model="org/base", messages=HI)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", "org/base")
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello world")
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 12, 23)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 5
    (request,) = replica.requests
    assert replica.tokenizer.decode(request.prompt_token_ids) == "user: hi\nA:"
    assert request.params.max_tokens == MAX_MODEL_LEN - 11
    assert request.adapter is None
    assert replica.closed == []


async def test_parameters_arrive(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Everything a caller may say about sampling is in the request."""
    await client.chat.completions.create(
        model="poet",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ],
        temperature=0,
        top_p=0.5,
        seed=-7,
        stop=["x", "yy"],
        max_tokens=3,
        n=2,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=2,
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="flex",
        response_format={"type": "json_object"},
        extra_body={
            "top_k": 4,
            "min_p": 0.1,
            "stop_token_ids": [7],
            "min_tokens": 1,
            "repetition_penalty": 1.5,
            "ignore_eos": True,
        },
    )
    request: GenerationRequest = replica.requests[0]
    assert replica.tokenizer.decode(request.prompt_token_ids) == "system: a\nb\nA:"
    assert request.adapter is not None
    assert (request.n, request.service_class) == (2, "batch")
    p = request.params
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.seed) == (0, 0.5, 4, 0.1, -7)
    assert (p.stop, p.stop_token_ids, p.max_tokens, p.min_tokens) == (("x", "yy"), (7,), 3, 1)
    assert (p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == (1, -1, 1.5)
    assert (p.logit_bias, p.logprobs, p.ignore_eos) == ({5: -100}, 2, True)
    assert p.grammar == Grammar(kind="json_object")


async def test_a_schema_becomes_a_grammar(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """The schema goes to the engine as JSON text."""
    schema: Any = {"name": "s", "schema": {"type": "object", "title": "ö"}, "strict": True}
    await client.chat.completions.create(
        model="org/base", messages=HI, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert replica.requests[0].params.grammar == Grammar(
        kind="json_schema", source='{"type": "object", "title": "ö"}'
    )


async def test_several_choices(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Each has its own text; the prompt is counted once."""
    replica.texts = ["one", "three"]
    answer = await client.chat.completions.create(model="org/base", messages=HI, n=2)
    assert [c.message.content for c in answer.choices] == ["one", "three"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 4 + 6)


async def test_logprobs(client: AsyncOpenAI) -> None:
    """One entry for a token of the text, none for the end token; no infinities."""
    answer = await client.chat.completions.create(
        model="org/base", messages=HI, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert "".join(c.token for c in content) == "Hello world"
    assert (content[0].logprob, content[0].bytes) == (-0.5, [ord("H")])
    assert [t.logprob for t in content[0].top_logprobs] == [-0.5, -9999.0]


async def test_a_streamed_answer(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """The role first, one chunk for each batch, the reason on the last, usage when asked for."""
    stream = await client.chat.completions.create(
        model="org/base", messages=HI, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = [c async for c in stream]
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [c.choices[0] for c in chunks[1:-1]]
    assert [d.delta.content for d in deltas] == ["Hel", "lo ", "wor", "ld"]
    assert [d.finish_reason for d in deltas] == [None, None, None, "stop"]
    logprobs = [e.token for d in deltas if d.logprobs for e in d.logprobs.content or []]
    assert "".join(logprobs) == "Hello world"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (11, 12)
    assert all(c.usage is None for c in chunks[:-1])
    assert replica.closed == []


async def test_streamed_choices_carry_their_index(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Interleaved, but each complete."""
    replica.texts = ["one", "seventeen"]
    stream = await client.chat.completions.create(model="org/base", messages=HI, stream=True, n=2)
    texts, reasons = ["", ""], ["", ""]
    async for chunk in stream:
        assert len(chunk.choices) == 1
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] += choice.finish_reason or ""
    assert texts == ["one", "seventeen"]
    assert reasons == ["stop", "stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_have_a_status(
    client: AsyncOpenAI, replica: FakeReplica, stream: bool
) -> None:
    """Raised or reported in an event, streamed or not."""
    replica.refusal = QueueFull("the queue is full", retry_after_s=7)
    with pytest.raises(RateLimitError) as full:
        await client.chat.completions.create(model="org/base", messages=HI, stream=stream)
    assert full.value.response.headers["retry-after"] == "7"
    assert full.value.code == "queue_full"
    replica.refusal = EngineUnavailable("the engine is starting")
    with pytest.raises(InternalServerError) as down:
        await client.chat.completions.create(model="org/base", messages=HI, stream=stream)
    assert down.value.status_code == 503
    replica.refusal, replica.fail_after = None, 0
    replica.error = InvalidAdapter("the adapter is damaged")
    with pytest.raises(BadRequestError, match="damaged") as bad:
        await client.chat.completions.create(model="org/base", messages=HI, stream=stream)
    assert bad.value.code == "invalid_adapter"


async def test_an_error_in_mid_stream_is_an_event(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """What came before it has been seen; the client raises."""
    replica.fail_after, replica.error = 2, EngineUnavailable("the engine stopped")
    stream = await client.chat.completions.create(model="org/base", messages=HI, stream=True)
    seen = ""
    with pytest.raises(APIError, match="engine stopped") as caught:  # noqa: PT012
        async for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
    assert seen == "Hello "
    assert caught.value.code == "engine_unavailable"


async def test_whole_answers_fail_whole(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """An error after some tokens has its status when nothing has been sent."""
    replica.fail_after, replica.error = 2, EngineUnavailable("the engine stopped")
    with pytest.raises(InternalServerError, match="engine stopped"):
        await client.chat.completions.create(model="org/base", messages=HI)


async def test_context(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """A prompt that fills the context, or a completion that would, is refused with the numbers."""
    long: Any = [{"role": "user", "content": "x" * MAX_MODEL_LEN}]
    for messages, asked in ((long, None), (HI, MAX_MODEL_LEN)):
        with pytest.raises(BadRequestError, match="maximum context length is 1000 tokens") as caught:
            await client.chat.completions.create(
                model="org/base", messages=messages, max_completion_tokens=asked
            )
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    answer = await client.chat.completions.create(model="org/base", messages=HI, max_tokens=4)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hell", "length")


async def test_a_model_without_template(tmp_path: Any) -> None:
    """Says what to use instead."""
    service = make_service(FakeReplica(make_tokenizer(tmp_path, None)), FakeRegistry())
    async with official(service) as client:
        with pytest.raises(BadRequestError, match="no chat template"):
            await client.chat.completions.create(model="org/base", messages=HI)


async def test_template_arguments(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """add_generation_prompt and chat_template_kwargs reach the template."""
    await client.chat.completions.create(
        model="org/base",
        messages=HI,
        extra_body={"add_generation_prompt": False, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert replica.tokenizer.decode(replica.requests[0].prompt_token_ids) == "user: hi\n"
