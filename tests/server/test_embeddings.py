"""Texts as vectors."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from stoa.errors import InvalidAdapter
from tests.server.fakes import MAX_MODEL_LEN, FakeReplica


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_vectors_have_length_one(client: AsyncOpenAI, form: Any) -> None:
    """The fake's [3, 4, 0, 12], scaled; the client's default is base64."""
    more = {} if form is None else {"encoding_format": form}
    answer = await client.embeddings.create(model="org/base", input="abc", **more)
    vector: Any = answer.data[0].embedding
    if form == "base64":
        assert isinstance(vector, str)
    else:
        assert vector == pytest.approx([3 / 13, 4 / 13, 0, 12 / 13], rel=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)


@pytest.mark.parametrize("given", [["abc", "de"], [[1, 2, 3], [4, 5]]])
async def test_many_inputs_keep_their_order(client: AsyncOpenAI, replica: FakeReplica, given: Any) -> None:
    """Each has its index."""
    answer = await client.embeddings.create(model="poet", input=given * 40)
    assert [d.index for d in answer.data] == list(range(80))
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.data[0].embedding == answer.data[78].embedding
    assert answer.usage.prompt_tokens == 200
    assert {r.pooling for r in replica.requests} == {"mean"}
    assert all(r.adapter is not None for r in replica.requests)
    assert len({r.id for r in replica.requests}) == 80


async def test_dimensions(client: AsyncOpenAI) -> None:
    """Cut, then scaled again; more than there are is refused."""
    answer = await client.embeddings.create(model="org/base", input="abc", dimensions=2)
    assert answer.data[0].embedding == pytest.approx([0.6, 0.8])
    with pytest.raises(BadRequestError, match="between 1 and 4"):
        await client.embeddings.create(model="org/base", input="abc", dimensions=5)


async def test_errors(client: AsyncOpenAI, replica: FakeReplica) -> None:
    """Too long an input, and what the engine reports."""
    with pytest.raises(BadRequestError, match="maximum context length") as caught:
        await client.embeddings.create(model="org/base", input=["a", "x" * (MAX_MODEL_LEN + 1)])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    replica.fail_after, replica.error = 0, InvalidAdapter("damaged")
    with pytest.raises(BadRequestError, match="damaged"):
        await client.embeddings.create(model="poet", input=["a", "b"])
