"""/v1/batches, through the official client: the lines run through the very endpoints that others ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, ConflictError, NotFoundError
from openai.types import Batch

from stoa.engine.tokenizer import Tokenizer
from stoa.errors import DatabaseUnavailable, QuotaExceeded
from stoa.server.openapi import OPERATIONS
from stoa.storage.database import Database
from tests.server.fakes import FakeReplica
from tests.server.house import House, Tenant, open_house
from tests.server.test_probes import samples

CHAT = "/v1/chat/completions"


@pytest.fixture
async def house(database: Database, tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[House]:
    async with open_house(database, tmp_path / "files", FakeReplica(tokenizer)) as found:
        yield found


def chat(custom_id: str, **more: Any) -> dict[str, Any]:
    body = {"model": "org/base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20} | more
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


async def send(who: Tenant, requests: list[dict[str, Any]], endpoint: Any = CHAT, **more: Any) -> Batch:
    text = "\n".join(map(json.dumps, requests)).encode()
    file = await who.client.files.create(file=("in.jsonl", text), purpose="batch")
    asked: dict[str, Any] = {"completion_window": "24h"} | more
    return await who.client.batches.create(input_file_id=file.id, endpoint=endpoint, **asked)


async def ended(house: House, who: Tenant, batch: Batch) -> Batch:
    async with asyncio.timeout(30):
        while (found := await who.client.batches.retrieve(batch.id)).status in (
            "validating",
            "in_progress",
            "finalizing",
            "cancelling",
        ):
            house.clock.pass_s(0.5)
            await asyncio.sleep(0.01)
    return found


async def lines(who: Tenant, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    text = (await who.client.files.content(file_id)).text
    return [json.loads(line) for line in text.splitlines()]


async def everything(house: House, key: str | None, batch: Batch) -> list[httpx.Response]:
    """An answer of each endpoint."""
    http = await house.http(key)
    asked = {"input_file_id": batch.input_file_id, "endpoint": CHAT, "completion_window": "24h"}
    return [
        await http.get("batches"),
        await http.post("batches", json=asked),
        await http.get(f"batches/{batch.id}"),
        await http.post(f"batches/{batch.id}/cancel"),
    ]


class TestWhoMay:
    async def test_nobody_without_a_key(self, house: House) -> None:
        """401 everywhere."""
        batch = await send(house.red, [chat("a")])
        assert [a.status_code for a in await everything(house, None, batch)] == [401] * 4

    async def test_others_find_nothing(self, house: House) -> None:
        """Another project's batch is 404, as its input file is."""
        batch = await send(house.red, [chat("a")])
        answers = await everything(house, house.blue.key, batch)
        assert [a.status_code for a in answers] == [200, 404, 404, 404]
        assert answers[0].json()["data"] == []
        assert (await house.red.client.batches.retrieve(batch.id)).status == "validating"

    async def test_it_takes_the_scope_to_ask_models(self, house: House) -> None:
        """Since that is what it does."""
        batch = await send(house.red, [chat("a")])
        key = await house.key(house.red.project_id, "file.read", "file.write", "model.read")
        assert [a.status_code for a in await everything(house, key, batch)] == [403] * 4
        key = await house.key(house.red.project_id, "model.request")
        assert [a.status_code for a in await everything(house, key, batch)] == [200] * 4


class TestOfficialClient:
    async def test_chat(self, house: House) -> None:
        """Each line is answered as if it had been asked by itself, in the batch class, on the project's account."""
        batch = await send(house.red, [chat(f"r{n}") for n in range(5)], metadata={"job": "7"})
        assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"job": "7"})
        assert batch.expires_at == batch.created_at + 86400
        async with house.running():
            done = await ended(house, house.red, batch)
        assert done.status == "completed"
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}
        assert done.usage is not None
        assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
        assert done.usage.input_tokens_details.cached_tokens == 25
        assert (done.model, done.error_file_id, done.errors) == ("org/base", None, None)
        assert done.completed_at is not None
        found = await lines(house.red, done.output_file_id)
        assert [line["custom_id"] for line in found] == [f"r{n}" for n in range(5)]
        for line in found:
            body = line["response"]["body"]
            assert (body["object"], body["choices"][0]["message"]["content"]) == (
                "chat.completion",
                "Hello world",
            )
        assert {r.service_class for r in house.replica.requests} == {"batch"}
        assert {a["principal"].project_id for a in house.metering.asked} == {house.red.project_id}
        assert all(ticket.closed for ticket in house.metering.tickets)
        output = await house.red.client.files.retrieve(str(done.output_file_id))
        assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")

    async def test_completions_and_embeddings(self, house: House) -> None:
        """The other endpoints, by their own bodies."""
        texts = [{"custom_id": "t", "method": "POST", "url": "/v1/completions",
                  "body": {"model": "org/base", "prompt": "hi"}}]  # fmt: skip
        vectors = [{"custom_id": "v", "method": "POST", "url": "/v1/embeddings",
                    "body": {"model": "org/base", "input": ["hi", "you"]}}]  # fmt: skip
        made = [
            await send(house.red, texts, "/v1/completions"),
            await send(house.red, vectors, "/v1/embeddings"),
        ]
        async with house.running():
            done = [await ended(house, house.red, batch) for batch in made]
        (text,), (vector,) = [await lines(house.red, d.output_file_id) for d in done]
        assert text["response"]["body"]["choices"][0]["text"] == "Hello world"
        assert len(vector["response"]["body"]["data"]) == 2
        assert {r.service_class for r in house.replica.requests} == {"batch"}

    async def test_what_the_endpoint_refuses_is_in_the_error_file(self, house: House) -> None:
        """With the body that it would have answered."""
        batch = await send(
            house.red, [chat("good"), chat("bad", temperature=9), chat("unknown", model="nobody")]
        )
        async with house.running():
            done = await ended(house, house.red, batch)
        assert done.request_counts is not None
        assert (done.status, done.request_counts.failed) == ("completed", 2)
        bad = await lines(house.red, done.error_file_id)
        shown = [(b["custom_id"], b["response"]["status_code"], b["response"]["body"]["error"]) for b in bad]
        assert [(a, b, c["param"]) for a, b, c in shown] == [
            ("bad", 400, "temperature"),
            ("unknown", 404, "model"),
        ]

    async def test_a_spent_budget_is_told(self, house: House) -> None:
        """Its lines fail with that error; nothing is tried again."""
        house.metering.refusal = QuotaExceeded("the budget has no room")
        batch = await send(house.red, [chat("a"), chat("b")])
        async with house.running():
            done = await ended(house, house.red, batch)
        bad = await lines(house.red, done.error_file_id)
        assert [b["response"]["body"]["error"]["code"] for b in bad] == ["insufficient_quota"] * 2

    async def test_a_bad_file_fails_with_its_lines(self, house: House) -> None:
        """As a list of errors."""
        batch = await send(house.red, [chat("a"), chat("a"), {"custom_id": "b"}])
        async with house.running():
            done = await ended(house, house.red, batch)
        assert done.status == "failed"
        assert done.errors is not None
        assert done.errors.object == "list"
        assert [(e.line, e.code) for e in done.errors.data or ()] == [
            (2, "duplicate_custom_id"),
            (3, "invalid_request"),
        ]

    async def test_an_urgent_line_is_its_projects_own_request(self, house: House) -> None:
        """Interactive, and on the account and share of the project, as if it had come by itself."""
        batch = await send(
            house.red, [chat("a"), chat("b") | {"url": "/v1/responses"}], completion_window="1h"
        )
        house.clock.pass_s(0.8 * 3600)
        async with house.running():
            failed = await ended(house, house.red, batch)
            assert failed.errors is not None
            assert [(e.line, e.code) for e in failed.errors.data or ()] == [(2, "url_mismatch")]
            batch = await send(house.red, [chat("a"), chat("b")], completion_window="1h")
            house.clock.pass_s(0.8 * 3600)
            await ended(house, house.red, batch)
        assert {r.service_class for r in house.replica.requests} == {"interactive"}
        assert {a["principal"].project_id for a in house.metering.asked} == {house.red.project_id}

    async def test_it_is_cancelled(self, house: House) -> None:
        """Within moments, though the engine never answers; what ran there is given up."""
        house.replica.hang_after = 0
        batch = await send(house.red, [chat("a"), chat("b")])
        async with house.running():
            await sent(house, 2)
            assert (await house.red.client.batches.cancel(batch.id)).status == "cancelling"
            done = await ended(house, house.red, batch)
        assert done.status == "cancelled"
        assert len(house.replica.closed) == 2
        assert [b["error"]["code"] for b in await lines(house.red, done.error_file_id)] == [
            "batch_cancelled"
        ] * 2
        with pytest.raises(ConflictError):
            await house.red.client.batches.cancel(batch.id)

    async def test_a_list_comes_in_pages(self, house: House) -> None:
        """The newest first."""
        made = []
        for _ in range(5):
            made.append((await send(house.red, [chat("a")])).id)
            house.clock.pass_s(1)
        assert [b.id async for b in house.red.client.batches.list(limit=2)] == made[::-1]
        assert [b.id async for b in house.blue.client.batches.list()] == []

    async def test_what_cannot_be_is_refused(self, house: House) -> None:
        """At once, and by name."""
        for more in ({"completion_window": "soon"}, {"endpoint": "/v1/moderations"}, {"metadata": {"k": 7}}):
            with pytest.raises(BadRequestError):
                await send(house.red, [chat("a")], **more)
        with pytest.raises(BadRequestError, match="'/v1/responses' has no batches; accepted: /v1/chat/comp"):
            await send(house.red, [chat("a")], "/v1/responses")
        with pytest.raises(NotFoundError):
            await house.red.client.batches.create(
                input_file_id="file-x", endpoint=CHAT, completion_window="24h"
            )
        with pytest.raises(NotFoundError):
            await house.red.client.batches.retrieve("batch_x")


def test_all_of_it_is_described(house: House) -> None:
    """Files too."""
    described = {o.path for o in OPERATIONS}
    own = {r.path for r in house.app.routes if r.path.startswith(("/v1/files", "/v1/batches"))}  # type: ignore[attr-defined]
    assert len(own) == 6
    assert own <= described


class TestMetrics:
    """What `/metrics` tells of batches."""

    async def test_batches_and_lines_are_counted(self, house: House) -> None:
        """Batches of all projects by status; lines as they are sent, and by what they came to. No project is named."""
        async with scraped(house) as http:
            before = await of_batches(http)
            assert set(before.values()) == {0}
            assert len(before) == 8 + 3 + 1
            async with house.running():
                await ended(house, house.red, await send(house.red, [chat("a"), chat("bad", temperature=9)]))
                await ended(house, house.blue, await send(house.blue, [chat("b")]))
                house.replica.hang_after = 0
                batch = await send(house.blue, [chat("c"), chat("d"), chat("e")])
                await sent(house, 2 + 3)
                during = await of_batches(http)
                await house.blue.client.batches.cancel(batch.id)
                await ended(house, house.blue, batch)
            after = await of_batches(http)
        assert positive(during) == {
            "stoa:batches{status=completed}": 2,
            "stoa:batches{status=in_progress}": 1,
            "stoa:batch_lines_total{outcome=completed}": 2,
            "stoa:batch_lines_total{outcome=failed}": 1,
            "stoa:batch_lines_in_flight": 3,
        }
        assert positive(after) == {
            "stoa:batches{status=completed}": 2,
            "stoa:batches{status=cancelled}": 1,
            "stoa:batch_lines_total{outcome=completed}": 2,
            "stoa:batch_lines_total{outcome=failed}": 1,
            "stoa:batch_lines_total{outcome=not_run}": 3,
        }

    async def test_a_scrape_does_not_fail_with_the_database(self, house: House) -> None:
        """Only what is asked of it is missing."""

        @asynccontextmanager
        async def read(scope: Any = None) -> AsyncIterator[Any]:
            raise DatabaseUnavailable("down")
            yield

        house.database.read = read  # type: ignore[method-assign]
        async with scraped(house) as http:
            found = await of_batches(http)
        assert not any(name.startswith("stoa:batches") for name in found)
        assert found["stoa:batch_lines_in_flight"] == 0


@asynccontextmanager
async def scraped(house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=house.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://stoa") as http:
        yield http


async def of_batches(http: httpx.AsyncClient) -> dict[str, float]:
    return {name: value for name, value in (await samples(http)).items() if name.startswith("stoa:batch")}


def positive(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value}


async def sent(house: House, requests: int) -> None:
    """Until the engine has had so many."""
    async with asyncio.timeout(30):
        while len(house.replica.requests) < requests:
            house.clock.pass_s(0.1)
            await asyncio.sleep(0.01)
