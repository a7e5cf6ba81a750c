"""Files: bytes that are there whole or not at all, and rows that outlive any crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from stoa.errors import ConfigError, InvalidRequest, NotFound, RequestTooLarge, StorageFull
from stoa.storage.database import Database
from stoa.storage.files import GIVEN_UP_S, FileRow, Files, StoredFile
from stoa.storage.objects import (
    LocalObjects,
    ObjectStore,
    RemoteObjects,
    StorageUnavailable,
    open_objects,
)
from stoa.storage.scope import EVERY_PROJECT
from tests.tenancy.meters.clock import ManualClock


async def bytes_of(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def pieces(*chunks: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


@pytest.fixture(params=["local", "remote"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A folder, and one that fsspec speaks to."""
    if request.param == "local":
        return LocalObjects(tmp_path / "files")
    return RemoteObjects(f"file://{tmp_path}/bucket/folder")


class TestObjects:
    async def test_what_is_put_is_read(self, objects: ObjectStore) -> None:
        """However large, and instead of what was there before."""
        big = bytes(range(256)) * 10_000
        assert await objects.put("p/a", pieces(big, b"", b"end")) == len(big) + 3
        assert await bytes_of(objects.read("p/a")) == big + b"end"
        await objects.put("p/a", pieces(b"other"))
        assert await bytes_of(objects.read("p/a")) == b"other"
        assert await objects.put("p/empty", pieces()) == 0
        assert await bytes_of(objects.read("p/empty")) == b""

    async def test_what_breaks_off_leaves_nothing(self, objects: ObjectStore) -> None:
        """Neither a new file nor a trace in an old one."""
        for _ in range(2):
            with pytest.raises(RuntimeError):
                await objects.put("p/a", pieces(b"x" * 3_000_000, then=RuntimeError()))
            with pytest.raises(NotFound):
                await bytes_of(objects.read("p/a"))
        await objects.put("p/a", pieces(b"old"))
        with pytest.raises(RuntimeError):
            await objects.put("p/a", pieces(b"new", then=RuntimeError()))
        assert await bytes_of(objects.read("p/a")) == b"old"

    async def test_what_is_deleted_is_gone(self, objects: ObjectStore) -> None:
        """And may be deleted again."""
        await objects.put("p/a", pieces(b"x"))
        await objects.delete("p/a")
        await objects.delete("p/a")
        with pytest.raises(NotFound):
            await bytes_of(objects.read("p/a"))

    async def test_a_folder_holds_nothing_but_files(self, tmp_path: Path) -> None:
        """What is being written is beside its place, and gone afterwards; deleting takes away what a crash has left."""
        objects = LocalObjects(tmp_path)
        await objects.put("p/a", pieces(b"x"))
        with pytest.raises(RuntimeError):
            await objects.put("p/b", pieces(b"x", then=RuntimeError()))
        assert [p.name for p in (tmp_path / "p").iterdir()] == ["a"]
        (tmp_path / "p" / ".a.1234.part").write_bytes(b"half")
        await objects.delete("p/a")
        assert list((tmp_path / "p").iterdir()) == []

    async def test_a_place_that_cannot_be_written_is_an_outage(self, tmp_path: Path) -> None:
        """Not a bug."""
        (tmp_path / "p").write_text("a file where the folder should be")
        with pytest.raises(StorageUnavailable):
            await LocalObjects(tmp_path).put("p/a", pieces(b"x"))

    def test_the_url_says_where(self, tmp_path: Path) -> None:
        """A folder under home, or what fsspec knows; all else is refused."""
        assert isinstance(open_objects("", tmp_path), LocalObjects)
        assert isinstance(open_objects("memory://bucket", tmp_path), RemoteObjects)
        with pytest.raises(ConfigError) as refused:
            open_objects("nowhere://bucket", tmp_path)
        assert refused.value.param == "files_url"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def files(database: Database, tmp_path: Path, clock: ManualClock) -> Files:
    return Files(database, LocalObjects(tmp_path / "files"), max_bytes=1000, clock=clock)


async def add(
    files: Files, project: str = "red", *, purpose: str = "user_data", expires: int | None = None
) -> StoredFile:
    async with files.arrival(project) as arrival:
        await arrival.write(pieces(b"hello ", project.encode()))
        return await arrival.finish("a.txt", purpose, expires_after_s=expires)


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("**/*") if path.is_file()]


async def rows(database: Database) -> list[str]:
    async with database.read(EVERY_PROJECT) as session:
        return [row.state for row in await session.scalars(select(FileRow))]


class TestFiles:
    async def test_a_file_is_its_projects(self, files: Files) -> None:
        """Others find nothing, whatever they do."""
        mine = await add(files)
        assert (mine.size_bytes, mine.filename, mine.expires_at) == (9, "a.txt", None)
        assert await files.get("red", mine.id) == mine
        assert await bytes_of(files.content(mine)) == b"hello red"
        with pytest.raises(NotFound):
            await files.get("blue", mine.id)
        with pytest.raises(NotFound):
            await files.delete("blue", mine.id)
        assert await files.list("blue") == ([], False)
        assert await files.get("red", mine.id) == mine

    async def test_it_is_seen_when_it_is_complete(self, files: Files, database: Database) -> None:
        """Not before; and one that breaks off is gone with its row."""
        async with files.arrival("red") as arrival:
            await arrival.write(pieces(b"x"))
            assert await files.list("red") == ([], False)
            with pytest.raises(NotFound):
                await files.get("red", arrival.id)
        assert await rows(database) == []
        with pytest.raises(RequestTooLarge):
            async with files.arrival("red") as arrival:
                await arrival.write(pieces(b"x" * 1001))
        assert await rows(database) == []

    async def test_it_is_deleted_with_its_bytes(
        self, files: Files, database: Database, tmp_path: Path
    ) -> None:
        """Nothing is left of it anywhere."""
        mine = await add(files)
        await files.delete("red", mine.id)
        with pytest.raises(NotFound):
            await files.get("red", mine.id)
        assert await rows(database) == []
        assert left_in(tmp_path / "files") == []

    async def test_it_expires(self, files: Files, database: Database, clock: ManualClock) -> None:
        """At its second nobody sees it any more; the next sweep takes it away."""
        mine, stays = await add(files, expires=3600), await add(files)
        clock.pass_s(3599)
        assert await files.sweep() == 0
        await files.get("red", mine.id)
        clock.pass_s(1)
        with pytest.raises(NotFound):
            await files.get("red", mine.id)
        assert (await files.list("red"))[0] == [stays]
        assert await files.sweep() == 1
        assert await rows(database) == ["ready"]

    async def test_what_a_crash_has_left_is_swept(
        self, files: Files, database: Database, clock: ManualClock, tmp_path: Path
    ) -> None:
        """Uploads that never ended, and deletions that were not carried through."""
        arrivals = files.arrival("red")  # its process dies
        arrival = await arrivals.__aenter__()
        await arrival.write(pieces(b"x"))
        gone = await add(files)
        async with database.begin(EVERY_PROJECT) as session:
            row = await session.get(FileRow, gone.id)
            assert row is not None
            row.state = "leaving"
        assert await files.sweep() == 1
        assert await rows(database) == ["arriving"]
        clock.pass_s(GIVEN_UP_S + 1)
        assert await files.sweep() == 1
        assert await rows(database) == []
        assert left_in(tmp_path / "files") == []
        await arrivals.__aexit__(None, None, None)

    async def test_a_list_comes_in_pages(self, files: Files, clock: ManualClock) -> None:
        """By age, also within a second; of one purpose if asked."""
        made = []
        for n in range(7):
            made.append(await add(files, purpose="batch" if n % 2 else "evals"))
            clock.pass_s(n % 3)
        seen: list[str] = []
        after, more = None, True
        while more:
            page, more = await files.list("red", after=after, limit=3)
            seen += [file.id for file in page]
            after = seen[-1]
        by_age = sorted(made, key=lambda f: (f.created_at, f.id))
        assert seen == [f.id for f in reversed(by_age)]
        assert (await files.list("red", order="asc"))[0] == by_age
        found, _ = await files.list("red", purpose="batch", order="asc")
        assert found == [f for f in by_age if f.purpose == "batch"]
        with pytest.raises(InvalidRequest):
            await files.list("red", after="file-unknown")

    async def test_our_own_files_can_be_made_again(self, files: Files) -> None:
        """Under the same id, of any size; never seen by halves."""
        for text in (b"first" * 500, b"second"):
            async with files.arrival("red", "file-ours") as arrival:
                await arrival.write(pieces(text))
                await arrival.finish("out.jsonl", "batch_output")
            mine = await files.get("red", "file-ours")
            assert mine.size_bytes == len(text)
            assert await bytes_of(files.content(mine)) == text


class TestRoom:
    """Of all files of a project together."""

    @pytest.fixture
    def small(self, files: Files) -> Files:
        return replace(files, max_stored_bytes=2500)

    async def test_a_full_project_takes_no_more(self, small: Files, clock: ManualClock) -> None:
        """How much is left is told; deleted and expired files make room again, and others have theirs."""
        first, second = [await upload(small, 1000, expires=hour) for hour in (None, 3600)]
        with pytest.raises(StorageFull, match="may take 2500 bytes, 500 of them are left"):
            await upload(small, 501)
        await upload(small, 500)
        with pytest.raises(StorageFull):
            await small.check_room("red")
        with pytest.raises(StorageFull):
            await upload(small, 1)
        await upload(small, 0)
        await upload(small, 1000, project="blue")
        await small.delete("red", first.id)
        await small.check_room("red")
        await upload(small, 1000)
        clock.pass_s(3600)
        await upload(small, 1000)
        assert second.size_bytes == 1000

    async def test_uploads_at_once_do_not_exceed_it(self, small: Files, database: Database) -> None:
        """However they come in; what broke off has given its room back."""
        done = await asyncio.gather(*(upload(small, 600) for _ in range(12)), return_exceptions=True)
        stored = [each.size_bytes for each in done if isinstance(each, StoredFile)]
        assert {type(each) for each in done} == {StoredFile, StorageFull}
        assert 600 <= sum(stored) <= 2500
        async with database.read(EVERY_PROJECT) as session:
            sizes = [row.size_bytes for row in await session.scalars(select(FileRow))]
        assert sorted(sizes) == sorted(stored)
        for _ in range(4 - len(stored)):
            await upload(small, 600)
        with pytest.raises(StorageFull):
            await upload(small, 600)

    async def test_what_arrives_has_its_room_already(self, small: Files) -> None:
        """As it comes in, and not only when it is complete."""
        async with small.arrival("red") as arrival:
            await arrival.write(pieces(*[b"x" * 100] * 10))
            with pytest.raises(StorageFull):
                await upload(small, 2000)
        await upload(small, 1000)

    async def test_our_own_files_are_always_written(self, small: Files) -> None:
        """They count all the same."""
        async with small.arrival("red", "file-ours") as arrival:
            await arrival.write(pieces(b"x" * 9000))
            await arrival.finish("out.jsonl", "batch_output")
        with pytest.raises(StorageFull, match=" 0 of them"):
            await upload(small, 1)

    async def test_without_a_limit_there_is_none(self, files: Files) -> None:
        """That is 0."""
        for _ in range(5):
            await upload(files, 1000)
        await files.check_room("red")


async def upload(files: Files, size: int, *, project: str = "red", expires: int | None = None) -> StoredFile:
    async with files.arrival(project) as arrival:
        await arrival.write(pieces(*[b"x" * 100] * (size // 100), b"x" * (size % 100)))
        return await arrival.finish("a.txt", "user_data", expires_after_s=expires)
