"""Choices that change how fast a kernel is, but not one bit of its result: measured once on each kind of GPU, then read.

The file: {"<device> triton <version>": {"<kernel> <key>": [fields of the choice]}}. It may be lost, damaged or shared by
processes that write at once: the worst that happens is that something is measured again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton

C = TypeVar("C")
Run = Callable[[], None]
Timer = Callable[[Run], float]
_FLUSH_BYTES = 256 << 20  # more than any L2 cache


class NothingRunsError(RuntimeError):
    """No candidate could be compiled and launched."""


class Tuning:
    """`timer`: seconds that a run takes; None where there is nothing to measure. `path`: None to forget with the process.

    While `frozen`, nothing is measured: what is known is used, or the default. So it must be while a graph is captured.
    """

    def __init__(
        self, path: Path | None, device_name: str, timer: Timer | None, version: str = triton.__version__
    ) -> None:
        self.frozen = False
        self._path = path
        self._timer = timer
        self._section = f"{device_name} triton {version}"
        self._known: dict[str, Any] = _section(_read(path), self._section)

    def choose(
        self, name: str, key: tuple[object, ...], candidates: Sequence[C], run: Callable[[C], None]
    ) -> C:
        """The fastest of `candidates` (frozen dataclasses of numbers; the first is the default) for what `name` and
        `key` describe. `run` launches a candidate once; it may raise where a candidate does not fit the GPU."""
        where = " ".join(map(str, (name, *key)))
        known = self._known.get(where)
        for candidate in candidates:
            if known == list(astuple(candidate)):  # type: ignore[call-overload]
                return candidate
        if self._timer is None or self.frozen or len(candidates) == 1:
            return candidates[0]
        best = self._fastest(where, candidates, run, self._timer)
        self._known[where] = list(astuple(best))  # type: ignore[call-overload]
        self._write()
        return best

    def _fastest(self, where: str, candidates: Sequence[C], run: Callable[[C], None], timer: Timer) -> C:
        best, best_s, error = None, math.inf, None
        for candidate in candidates:
            try:
                seconds = timer(lambda candidate=candidate: run(candidate))  # type: ignore[misc]
            except torch.OutOfMemoryError:
                raise  # of none of them in particular
            except Exception as e:  # too much shared memory, too many registers, a compiler's bug
                error = e
                continue
            if best is None or seconds < best_s:
                best, best_s = candidate, seconds
        if best is None:
            raise NothingRunsError(f"{where}: none of {len(candidates)} candidates runs") from error
        return best

    def _write(self) -> None:
        """Adds what is known to what others have written since. A file that cannot be written is done without."""
        if self._path is None:
            return
        everything = _read(self._path)
        everything[self._section] = {**_section(everything, self._section), **self._known}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(fd, "w") as file:
                json.dump(everything, file, indent=1, sort_keys=True)
            os.replace(temporary, self._path)
        except OSError:
            return


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _section(everything: dict[str, Any], name: str) -> dict[str, Any]:
    found = everything.get(name)
    return dict(found) if isinstance(found, dict) else {}


def cold_timer(device: torch.device, repeats: int = 10) -> Timer:
    """Seconds of the median run on a GPU whose caches hold something else, as between two layers of a model."""
    other = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def seconds(run: Run) -> float:
        run()  # compiles
        pairs = []
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            other.zero_()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize(device)
        return float(sorted(start.elapsed_time(end) for start, end in pairs)[repeats // 2]) / 1000

    return seconds
