"""Plain continuations."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError

from stoa.errors import EngineUnavailable
from tests.server.fakes import MAX_MODEL_LEN, FakeReplica


async def test_a_whole_answer(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Sixteen tokens unless told otherwise."""
    answer = await client.completions.create(model="org/base", prompt="abc")
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "Hello world",
        "stop",
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    assert replica.requests[0].params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "echoed"),
    [("ab", ["ab"]), (["ab", "cde"], ["ab", "cde"]), ([64, 65], None), ([[64], [65, 66]], None)],
)
async def test_kinds_of_prompts(
    client: AsyncOpenAI, replica: FakeReplica, prompt: Any, echoed: list[str] | None
) -> None:
    """Text or token ids, one or many; choices of prompt i begin at i * n. Echo puts the prompt in front."""
    answer = await client.completions.create(model="org/base", prompt=prompt, echo=True, n=2, max_tokens=5)
    if echoed is None:
        echoed = [replica.tokenizer.decode(r.prompt_token_ids) for r in replica.requests]
    assert [c.index for c in answer.choices] == list(range(2 * len(echoed)))
    assert [c.text for c in answer.choices] == [e + "Hello" for e in echoed for _ in range(2)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(r.prompt_token_ids) for r in replica.requests)
    assert answer.usage.completion_tokens == 5 * 2 * len(echoed)


async def test_logprobs(client: AsyncOpenAI) -> None:
    """Tokens, offsets in the text, and a dictionary of likely ones."""
    answer = await client.completions.create(model="org/base", prompt="abc", logprobs=2, max_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["H", "e", "l", "l"]
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"H": -0.5, "!": -9999.0}


async def test_streams_of_several_prompts(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """All prompts run at once; each choice is complete; usage is of all."""
    stream = await client.completions.create(
        model="org/base",
        prompt=["ab", "c"],
        n=2,
        stream=True,
        echo=True,
        stream_options={"include_usage": True},
    )
    texts = [""] * 4
    usage = None
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage
    assert texts == ["abHello world", "abHello world", "cHello world", "cHello world"]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 48)
    assert replica.closed == []


async def test_one_failure_ends_all(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """An error of one prompt cancels the others."""
    replica.error, replica.fail_after = EngineUnavailable("gone"), 1
    with pytest.raises(APIError, match="gone"):  # noqa: PT012
        stream = await client.completions.create(model="org/base", prompt=["ab", "c"], stream=True)
        async for _ in stream:
            pass
    assert len(replica.closed) == 2


async def test_context(client: AsyncOpenAI) -> None:
    """The default gives way to the context; an explicit number does not."""
    prompt = "x" * (MAX_MODEL_LEN - 5)
    answer = await client.completions.create(model="org/base", prompt=prompt)
    assert answer.choices[0].text == "Hello"
    for text, asked in ((prompt, 6), (prompt + "12345", None)):
        with pytest.raises(BadRequestError, match="maximum context length") as caught:
            await client.completions.create(model="org/base", prompt=text, max_tokens=asked)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
