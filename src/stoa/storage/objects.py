"""Where the bytes of files lie: a folder here, or whatever fsspec can speak to (S3, Azure, Google …).

Names are "PROJECT/ID". A name is there with all its bytes or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from stoa.errors import ConfigError, NotFound, StoaError
from stoa.storage.carrying import carried_through

T = TypeVar("T")
_PIECE_BYTES = 1 << 20  # one trip to a thread


class StorageUnavailable(StoaError):
    """The place where files lie cannot be read or written at the moment, or is full."""

    status = 503
    code = "storage_unavailable"


class ObjectStore(Protocol):
    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        """All of `chunks` under that name, instead of what was there; returns how many bytes. If `chunks` raises,
        nothing has changed. Raises StorageUnavailable."""
        ...

    def read(self, name: str) -> AsyncGenerator[bytes, None]:
        """In pieces; to be closed. Raises NotFound, StorageUnavailable."""
        ...

    async def delete(self, name: str) -> None:
        """What is not there is deleted already. Raises StorageUnavailable."""
        ...


def open_objects(url: str, home: Path) -> ObjectStore:
    """`url`: s3://BUCKET/FOLDER and the like; empty: a folder under `home`. Raises ConfigError."""
    return RemoteObjects(url) if url else LocalObjects(home / "files")


class LocalObjects:
    """In a folder. What is being written lies beside its place until it is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        path = self._folder / name
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            async with _opened(lambda: _create(part)) as file:
                size = await _write(file, chunks)
                await _thread(lambda: _sync(file))
            await _thread(lambda: _rename(part, path))
        finally:
            with contextlib.suppress(OSError):  # the first error counts
                await carried_through(asyncio.to_thread(part.unlink, missing_ok=True))
        return size

    def read(self, name: str) -> AsyncGenerator[bytes, None]:
        return _pieces((self._folder / name).open, "rb")

    async def delete(self, name: str) -> None:
        await _thread(lambda: _remove(self._folder / name))


class RemoteObjects:
    """Behind fsspec, by URL. Its drivers come from packages of their own: s3fs, adlfs, gcsfs … One must be able to keep
    back what is written until it is committed, as these do."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if there is no driver for `url`."""
        try:
            import fsspec  # type: ignore[import-untyped]  # an extra

            self._system, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"files cannot lie at {url!r}: {error}", param="files_url") from None
        self._root = str(root).rstrip("/")

    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        path = f"{self._root}/{name}"

        def create() -> Any:
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self._system.open(path, "wb", autocommit=False)

        files: list[Any] = []
        try:
            async with _opened(create) as file:
                files.append(file)
                size = await _write(file, chunks)
            await _thread(files[0].commit)
        except BaseException:
            for each in files:
                with contextlib.suppress(Exception):  # the first error counts
                    await _thread(each.discard)
            raise
        return size

    def read(self, name: str) -> AsyncGenerator[bytes, None]:
        return _pieces(self._system.open, f"{self._root}/{name}", "rb")

    async def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await _thread(lambda: self._system.rm_file(f"{self._root}/{name}"))


async def _thread(work: Callable[[], T]) -> T:
    """To its end in any case. The file system's errors become ours."""
    try:
        return await carried_through(asyncio.to_thread(work))
    except FileNotFoundError:
        raise NotFound("the file's content is gone") from None
    except OSError as error:
        raise StorageUnavailable(
            f"files cannot be kept at the moment: {error.strerror or 'input or output failed'}"
        ) from error


@asynccontextmanager
async def _opened(how: Callable[[], IO[bytes]]) -> AsyncIterator[IO[bytes]]:
    """A file that is closed in any case, also if it is opened while the caller is cancelled."""
    files: list[IO[bytes]] = []
    try:
        await _thread(lambda: files.append(how()))
        yield files[0]
    finally:
        for file in files:
            await _thread(file.close)


async def _write(file: IO[bytes], chunks: AsyncIterator[bytes]) -> int:
    """In pieces of a good size; returns how many bytes."""
    size, waiting = 0, bytearray()
    async for chunk in chunks:
        size += len(chunk)
        waiting += chunk
        if len(waiting) >= _PIECE_BYTES:
            piece, waiting = bytes(waiting), bytearray()
            await _thread(lambda piece=piece: file.write(piece))  # type: ignore[misc]
    await _thread(lambda: file.write(bytes(waiting)))
    return size


async def _pieces(opened: Callable[..., IO[bytes]], *how: str) -> AsyncGenerator[bytes, None]:
    async with _opened(lambda: opened(*how)) as file:
        while piece := await _thread(lambda: file.read(_PIECE_BYTES)):
            yield piece


def _create(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "xb", buffering=0)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rename(part: Path, path: Path) -> None:
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: Path) -> None:
    """With what an interrupted `put` may have left."""
    for each in (path, *path.parent.glob(f".{path.name}.*.part")):
        each.unlink(missing_ok=True)
