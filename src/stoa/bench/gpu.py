"""What a GPU is, how fast it copies and multiplies, and how much of a step it worked.

Everything runs without a GPU too, in Triton's interpreter, on the CPU's memory and clock: tests see it so, figures mean
nothing then.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from stoa.bench.machine import installed
from stoa.engine import Engine
from stoa.engine.kernels.cuda import program
from stoa.engine.kernels.cuda.device import Gpu, find_gpu
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.program import Captured

_QUERY = {  # what nvidia-smi calls it -> what we do
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_mhz_most",
    "clocks.mem": "memory_mhz",
    "power.limit": "power_limit_w",
}
_GIB = 1 << 30


def gpu_facts() -> dict[str, Any]:
    """Name, driver, CUDA, memory, capability, clocks, versions. Raises ConfigError where no GPU can be used."""
    gpu = find_gpu()
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "multiprocessors": gpu.multiprocessors,
        "gpu_memory_gib": round(gpu.memory_bytes / _GIB, 1),
        "cuda": torch.version.cuda or "",
        "driver_cuda": gpu.driver,
        "triton": installed("triton"),
        **(_asked_driver(gpu) if gpu.device.type == "cuda" else {}),
    }


def _asked_driver(gpu: Gpu) -> dict[str, str]:
    """{} where there is no nvidia-smi to ask."""
    program_path = shutil.which("nvidia-smi")
    if program_path is None:
        return {}
    command = [program_path, f"--id={gpu.device.index or 0}", f"--query-gpu={','.join(_QUERY)}"]
    done = subprocess.run(
        [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
    )
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_QUERY.values(), values, strict=True)) if len(values) == len(_QUERY) else {}


# -- time on a GPU


class Mark(Protocol):
    """A moment in the device's work."""

    def record(self) -> None: ...

    def seconds_until(self, later: Any) -> float:
        """`later` has been reached."""
        ...


class _Event:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record()

    def seconds_until(self, later: _Event) -> float:
        return float(self._event.elapsed_time(later._event)) / 1000


class _Moment:
    """Without a GPU, work is done when it has been started."""

    def __init__(self) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def seconds_until(self, later: _Moment) -> float:
        return later._at - self._at


def mark(device: torch.device) -> Mark:
    return _Event() if device.type == "cuda" else _Moment()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_seconds(run: Callable[[], object], device: torch.device, repeats: int, warm: int = 2) -> float:
    """The median run on the device's own clock."""
    for _ in range(warm):
        run()
    pairs = []
    for _ in range(repeats):
        start, end = mark(device), mark(device)
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    wait(device)
    return statistics.median(start.seconds_until(end) for start, end in pairs)


def forget_memory(device: torch.device) -> None:
    """Gives back what nobody holds any more, and begins the count of the most that was held anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """The most memory that tensors held; 0 without a GPU."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else 0.0


# -- ceilings


def ceilings(nbytes: int = 4 * _GIB, side: int = 8192, repeats: int = 10) -> dict[str, float]:
    """Rates that floors are reckoned with. `copy_gb_s`: a copy within the device's memory, bytes read plus bytes written;
    `read_gb_s`: a sum; `host_to_device_gb_s`: from pinned memory; `matrix_tflop_s`: torch.matmul on random bf16."""
    device = find_gpu().device
    if device.type == "cpu":
        nbytes, side, repeats = 1 << 22, 128, 3
    rates = _memory_rates(device, nbytes, repeats) | _matrix_rate(device, side, repeats)
    forget_memory(device)
    return rates


def _memory_rates(device: torch.device, nbytes: int, repeats: int) -> dict[str, float]:
    data = torch.randn(nbytes // 4, device=device)
    other = torch.empty_like(data)
    copy_s = device_seconds(lambda: other.copy_(data), device, repeats)
    read_s = device_seconds(data.sum, device, repeats)
    part = data[: _GIB // 4]
    pinned = torch.empty(len(part), pin_memory=device.type == "cuda")
    send_s = device_seconds(lambda: part.copy_(pinned, non_blocking=True), device, repeats)
    return {
        "copy_gb_s": _digits(2 * data.nbytes / copy_s / 1e9),
        "read_gb_s": _digits(data.nbytes / read_s / 1e9),
        "host_to_device_gb_s": _digits(part.nbytes / send_s / 1e9),
    }


def _matrix_rate(device: torch.device, side: int, repeats: int) -> dict[str, float]:
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return {"matrix_tflop_s": _digits(2 * side**3 / device_seconds(lambda: a @ b, device, repeats) / 1e12)}


def _digits(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def floor_s(nbytes: float, operations: float, rates: dict[str, float]) -> float:
    """Seconds that nothing on the device can be faster than."""
    return max(nbytes / (rates["copy_gb_s"] * 1e9), operations / (rates["matrix_tflop_s"] * 1e12))


# -- how much of an engine's step was the GPU's


class StepClock:
    """Seconds that the GPU worked in each step that was played from a graph: from the graph's first kernel to the last one
    that draws tokens. The rest of a step's wall time is the host's alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start, self._end = mark(device), mark(device)
        self._playing = False
        self._seconds: list[float] = []

    def take(self) -> list[float]:
        """Those since the last call."""
        taken, self._seconds = self._seconds, []
        return taken

    @contextlib.contextmanager
    def on(self, engine: Engine) -> Iterator[None]:
        """Graphs that the engine captures meanwhile are timed."""
        capture, draw = program.capture, engine.kernels.draw

        def timed_capture(*args: Any) -> Captured:
            return _Played(capture(*args), self)

        def timed_draw(logits: Tensor, rows: Any) -> list[int]:
            kernels: Any = engine.kernels
            with kernels.through(self._noting(kernels.launch)):
                tokens = draw(logits, rows)
            if self._playing:
                self._seconds.append(self._start.seconds_until(self._end))
            self._playing = False
            return tokens

        with replaced(program, "capture", timed_capture), replaced(engine.kernels, "draw", timed_draw):
            yield

    def played(self) -> None:
        self._playing = True
        self._start.record()

    def _noting(self, launch: Launch) -> Launch:
        """After each launch, the step may have ended."""

        def noting(*args: Any, **options: Any) -> None:
            launch(*args, **options)
            self._end.record()

        return noting


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Played:
    """A graph that says when it begins."""

    def __init__(self, captured: Captured, clock: StepClock) -> None:
        self._captured = captured
        self._clock = clock

    def replay(self) -> None:
        self._clock.played()
        self._captured.replay()
