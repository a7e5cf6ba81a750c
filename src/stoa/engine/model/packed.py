"""A model's weights as the kernels read them, kept in a file that the next start only maps.

The file is safetensors: uint8 tensors that begin at multiples of 64 bytes, 64 more readable bytes at the end, and in its
metadata a text that says what it was made from (`made_from`). Mapped, it costs no copy, and engines of one machine share
its memory. Every loader comes with what it takes to make the file again, so one that does not fit is no error.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

_ALIGN = 64
_FIRST = 4096  # where the tensors begin is a multiple of this
_WRITE_BYTES = 1 << 24
_SPARE = 2  # times the file's size must be free on disk
_MADV_POPULATE_READ = 22
_CODE = ("kernels", "model", "parallel")  # rooms whose files decide what a packed weight looks like


class PackedFile:
    """Tensors by name, read in place."""

    def __init__(self, memory: mmap.mmap, where: Mapping[str, tuple[int, int]]) -> None:
        self._memory = memory
        self._where = where  # first byte and size

    def get(self, name: str) -> Tensor | None:
        """uint8, or None if there is no such tensor."""
        at, size = self._where.get(name, (0, 0))
        if name not in self._where:
            return None
        return torch.frombuffer(self._memory, dtype=torch.uint8, offset=at, count=size)

    def prefault(self) -> threading.Thread:
        """Maps all of it into this process, beside whatever else goes on; reads what is not in memory yet."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        madvise = ctypes.CDLL(None).madvise  # releases the interpreter, unlike mmap's own
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        size = len(self._memory)
        thread = threading.Thread(target=lambda: madvise(start, size, _MADV_POPULATE_READ), name="prefault")
        thread.daemon = True
        thread.start()
        return thread


def packed_path(folder: Path, cache: Path, form: str) -> Path:
    """One file for each model folder and form of packing."""
    name = hashlib.sha256(f"{folder.resolve()}\0{form}".encode()).hexdigest()[:24]
    return cache / f"{name}.safetensors"


def made_from(folder: Path, form: str) -> str:
    """Changes when the folder's files, the form of packing or the code that packs do. Files are known by size, inode and
    times of change of content and of status, which nobody sets back by accident; their bytes are not read."""
    here = Path(__file__).parents[1]
    code = [path for room in _CODE for path in (here / room).iterdir() if path.suffix in (".py", ".so")]
    weights = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")]
    lines = [form]
    for path in sorted(weights) + sorted(code):
        facts = path.stat()
        lines.append(f"{path.name} {facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def open_packed(path: Path, origin: str) -> PackedFile | None:
    """None if there is no such file, or it was not made from `origin`, or it is not whole."""
    try:
        with path.open("rb") as file:
            head = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if head > size:
                return None
            facts = json.loads(file.read(head))
            if facts.pop("__metadata__")["made_from"] != origin:
                return None
            spans = {name: entry["data_offsets"] for name, entry in facts.items()}
            where = {name: (8 + head + first, last - first) for name, (first, last) in spans.items()}
            if any(at < 0 or count < 1 or at + count > size for at, count in where.values()):
                return None
            # private and writable: torch wants that, though nobody writes
            memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return PackedFile(memory, where)


def write_packed(path: Path, tensors: Mapping[str, Tensor], origin: str) -> bool:
    """Writes the file whole or not at all. False: there is no room for it, another process is at it, or the disk refused.

    A file half written by a process that died is taken over: one file at most is in the way of each.
    """
    views = {name: tensor.view(torch.uint8).flatten() for name, tensor in tensors.items()}
    total = sum(view.numel() + 2 * _ALIGN for view in views.values())
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(path.parent).free < _SPARE * total:
            return False
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != partial.stat().st_ino:
                return False  # it has just become the file itself
            try:
                _write_all(file, views, origin)
                partial.rename(path)
            except OSError:
                partial.unlink()
                return False
    except OSError:
        return False
    return True


def _write_all(file: FileIO, views: Mapping[str, Tensor], origin: str) -> None:
    file.truncate(0)
    file.write(_header(views, origin))
    for view in views.values():
        _write(file.fileno(), view)
        file.write(bytes(_padding(view.numel())))
    file.write(bytes(_ALIGN))


def write_later(path: Path, tensors: Mapping[str, Tensor], origin: str) -> threading.Thread:
    """`write_packed` on a thread that gives way to everybody."""

    def work() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        write_packed(path, tensors, origin)

    thread = threading.Thread(target=work, name="packed-writer", daemon=True)
    thread.start()
    return thread


def _header(views: Mapping[str, Tensor], origin: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"made_from": origin}}
    at = 0
    for name, view in _with_padding(views):
        entries[name] = {"dtype": "U8", "shape": [view], "data_offsets": [at, at + view]}
        at += view
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _FIRST)
    return len(text).to_bytes(8, "little") + text


def _with_padding(views: Mapping[str, Tensor]) -> Iterable[tuple[str, int]]:
    """Names and sizes of all tensors of the file; what fills gaps is a tensor too, as the format wants."""
    for name, view in views.items():
        yield name, view.numel()
        if padding := _padding(view.numel()):
            yield f"{name}.padding", padding
    yield "slack", _ALIGN


def _padding(size: int) -> int:
    return -size % _ALIGN


def _write(descriptor: int, view: Tensor) -> None:
    data = memoryview(view.numpy())  # type: ignore[arg-type]
    while data:
        data = data[os.write(descriptor, data[:_WRITE_BYTES]) :]
