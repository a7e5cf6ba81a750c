"""/v1/files, through the official client and past it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError
from openai.types import FileObject

from stoa.engine.tokenizer import Tokenizer
from stoa.storage.database import Database
from tests.server.fakes import FakeReplica
from tests.server.house import House, open_house

TEXT = b"line one\nline two\n" * 1000


@pytest.fixture
async def house(database: Database, tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[House]:
    async with open_house(database, tmp_path / "files", FakeReplica(tokenizer)) as found:
        yield found


@pytest.fixture
async def mine(house: House) -> FileObject:
    return await house.red.client.files.create(file=("notes.txt", TEXT), purpose="user_data")


async def everything(house: House, key: str | None, file_id: str) -> list[httpx.Response]:
    """An answer of each endpoint."""
    http = await house.http(key)
    return [
        await http.get("files"),
        await http.post("files", files={"file": ("x", b"x")}, data={"purpose": "evals"}),
        await http.get(f"files/{file_id}"),
        await http.get(f"files/{file_id}/content"),
        await http.delete(f"files/{file_id}"),
    ]


class TestWhoMay:
    async def test_nobody_without_a_key(self, house: House, mine: FileObject) -> None:
        """401 everywhere."""
        assert [a.status_code for a in await everything(house, None, mine.id)] == [401] * 5

    async def test_others_find_nothing(self, house: House, mine: FileObject) -> None:
        """Another project's file is 404, as one that never was; its list is its own."""
        for file_id in (mine.id, "file-never", "..%2F..%2Fstoa.db"):
            answers = await everything(house, house.blue.key, file_id)
            assert [a.status_code for a in answers] == [200, 200, 404, 404, 404]
            assert mine.id not in answers[0].text
        assert (await house.red.client.files.content(mine.id)).content == TEXT

    async def test_scopes(self, house: House, mine: FileObject) -> None:
        """Reading takes file.read, sending and deleting file.write."""
        key = await house.key(house.red.project_id, "file.read", "model.request")
        assert [a.status_code for a in await everything(house, key, mine.id)] == [200, 403, 200, 200, 403]
        key = await house.key(house.red.project_id, "file.write")
        assert [a.status_code for a in await everything(house, key, mine.id)] == [403, 200, 403, 403, 200]


class TestOfficialClient:
    async def test_a_file_comes_and_goes(self, house: House, mine: FileObject) -> None:
        """Every call that the client has."""
        files = house.red.client.files
        assert (mine.object, mine.filename, mine.bytes) == ("file", "notes.txt", len(TEXT))
        assert (mine.purpose, mine.status, mine.expires_at) == ("user_data", "processed", None)
        assert mine.created_at == int(house.clock.now_s)
        assert await files.retrieve(mine.id) == mine
        assert [f.id async for f in files.list()] == [mine.id]
        content = await files.content(mine.id)
        assert content.content == TEXT
        assert content.response.headers["content-length"] == str(len(TEXT))
        assert "notes.txt" in content.response.headers["content-disposition"]
        assert (await files.wait_for_processing(mine.id)).id == mine.id
        gone = await files.delete(mine.id)
        assert (gone.id, gone.deleted, gone.object) == (mine.id, True, "file")
        with pytest.raises(NotFoundError):
            await files.retrieve(mine.id)
        assert [f.id async for f in files.list()] == []

    async def test_a_list_comes_in_pages(self, house: House) -> None:
        """The client walks them by itself: the newest first, or the oldest; of one purpose if asked."""
        files, made = house.red.client.files, []
        for n in range(5):
            purpose: Any = "batch" if n % 2 else "fine-tune"
            made.append((await files.create(file=(f"{n}", b"x"), purpose=purpose)).id)
            house.clock.pass_s(1)
        assert [f.id async for f in files.list(limit=2)] == made[::-1]
        assert [f.id async for f in files.list(limit=2, order="asc")] == made
        assert [f.id async for f in files.list(limit=1, order="asc", purpose="batch")] == made[1::2]

    async def test_files_expire(self, house: House) -> None:
        """When their owner says so; a batch's input after thirty days unless it says otherwise."""
        files = house.red.client.files
        now = int(house.clock.now_s)
        asked = await files.create(
            file=("a", b"x"), purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert asked.expires_at == now + 3600
        batch = await files.create(file=("a", b"x"), purpose="batch")
        assert batch.expires_at == now + 30 * 86400
        house.clock.pass_s(3601)
        with pytest.raises(NotFoundError):
            await files.content(asked.id)
        assert [f.id async for f in files.list()] == [batch.id]


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "param", "says"),
        [
            ({}, "purpose", "Missing"),
            ({"purpose": "fun"}, "purpose", "accepted: assistants"),
            ({"purpose": "batch_output"}, "purpose", "accepted"),
            ({"purpose": "evals", "color": "red"}, "color", "Unrecognized"),
            ({"purpose": "evals", "expires_after[seconds]": "3600"}, "expires_after", "anchor"),
            (
                {"purpose": "evals", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
                "expires_after",
                "3600",
            ),
            ({"purpose": "x" * 5000}, "purpose", "longer"),
        ],
    )
    async def test_fields(self, house: House, data: dict[str, str], param: str, says: str) -> None:
        """Each is named, and nothing is left."""
        http = await house.http(house.red.key)
        answer = await http.post("files", files={"file": ("x", b"x")}, data=data)
        assert answer.status_code in (400, 413)
        assert answer.json()["error"]["param"] == param
        assert says in answer.json()["error"]["message"]
        assert (await http.get("files")).json()["data"] == []

    async def test_bodies(self, house: House) -> None:
        """What is no multipart, has no file, ends early, or is too large."""
        http = await house.http(house.red.key)
        form = {"content-type": "multipart/form-data; boundary=b"}
        whole = (
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhello\r\n--b--\r\n'
        )
        assert (await http.post("files", content=whole, headers=form)).status_code == 200
        bad = {
            "form-data": await http.post("files", json={"purpose": "evals"}),
            "last boundary": await http.post("files", content=whole[:-12], headers=form),
            "malformed": await http.post("files", content=b"--x", headers=form),
            "a file, with a name": await http.post(
                "files", content=whole.replace(b'; filename="x"', b""), headers=form
            ),
            "has no name": await http.post("files", content=whole.replace(b"; name=", b"; n="), headers=form),
            "'file'": await http.post("files", data={"purpose": "evals"}, files={"other": ("x", b"")}),
            "up to 100000": await http.post(
                "files", files={"file": ("x", b"x" * 100_001)}, data={"purpose": "evals"}
            ),
        }
        for says, answer in bad.items():
            assert answer.status_code in (400, 413), says
            assert says in answer.json()["error"]["message"]
        assert len((await http.get("files")).json()["data"]) == 1

    async def test_names_are_made_harmless(self, house: House) -> None:
        """Folders and line ends are no part of a name."""
        made = await house.red.client.files.create(file=("../../etc/pass\nwd", b"x"), purpose="user_data")
        assert "/" not in made.filename
        assert made.filename.isprintable()
        content = await house.red.client.files.content(made.id)
        assert content.content == b"x"

    async def test_queries(self, house: House) -> None:
        """Limits and cursors out of range."""
        http = await house.http(house.red.key)
        for query in ("limit=0", "limit=10001", "order=up", "after=file-x", "color=red"):
            assert (await http.get(f"files?{query}")).status_code == 400
        assert (await http.put("files")).status_code == 405

    @pytest.mark.parametrize(
        "odd", ["%00", "a%00b", "%0A", "%E2%80%AE", "%FF", "x" * 3000, "%F0%9F%98%80", "'--"]
    )
    async def test_odd_ids(self, house: House, odd: str) -> None:
        """No such file, or no such URL, in the form of an error."""
        http = await house.http(house.red.key)
        for answer in (
            await http.get(f"files/{odd}"),
            await http.get(f"files/{odd}/content"),
            await http.delete(f"files/{odd}"),
            await http.get(f"files?after={odd}"),
            await http.get(f"batches/{odd}"),
            await http.post(f"batches/{odd}/cancel"),
            await http.get(f"batches?after={odd}"),
            await http.get(f"organization/projects/{odd}"),
        ):
            assert answer.status_code in (400, 403, 404), answer.request.url
            assert answer.json()["error"]["type"] == "invalid_request_error"

    async def test_a_full_project(self, house: House) -> None:
        """Its uploads and batches are refused with what is left; deleting helps."""
        object.__setattr__(house.files, "max_stored_bytes", 30_000)
        files = house.red.client.files
        first = await files.create(file=("a", TEXT), purpose="batch")
        with pytest.raises(BadRequestError, match=f"{30_000 - len(TEXT)} of them are left") as refused:
            await files.create(file=("b", TEXT), purpose="batch")
        assert refused.value.code == "storage_limit_exceeded"
        await house.blue.client.files.create(file=("b", TEXT), purpose="batch")
        await files.create(file=("c", b"x" * (30_000 - len(TEXT))), purpose="evals")
        with pytest.raises(BadRequestError, match=" 0 of them"):
            await house.red.client.batches.create(
                input_file_id=first.id, endpoint="/v1/completions", completion_window="24h"
            )
        await files.delete(first.id)
        await files.create(file=("b", TEXT), purpose="batch")


async def test_a_large_file_streams(house: House) -> None:
    """What has come of it is handed on before the rest is here."""
    handed_on = 0
    put = house.files.objects.put

    async def watched(name: str, chunks: AsyncIterator[bytes]) -> int:
        async def watch() -> AsyncIterator[bytes]:
            nonlocal handed_on
            async for chunk in chunks:
                handed_on += len(chunk)
                yield chunk

        return await put(name, watch())

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
        for n in range(90):
            assert handed_on >= 1000 * (n - 1)
            yield b"x" * 1000
        yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n--b--\r\n'

    object.__setattr__(house.files.objects, "put", watched)
    http = await house.http(house.red.key)
    form = {"content-type": "multipart/form-data; boundary=b"}
    made = await http.post("files", content=body(), headers=form)
    assert made.json()["bytes"] == handed_on == 90_000
