"""The one door through which every Triton kernel starts: a graph or a compiler can stand in for it."""

from __future__ import annotations

from typing import Any, Protocol


class Launch(Protocol):
    """Starts `kernel` once for each point of `grid`. `constants` are its constexpr parameters, by name."""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int, **constants: Any
    ) -> None: ...


def direct(kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int, **constants: Any) -> None:
    """On the current stream; with a grid of nothing, not at all."""
    if all(grid):
        kernel[grid](*args, num_warps=warps, num_stages=stages, **OPTIONS, **constants)


OPTIONS = {"enable_fp_fusion": True}  # said aloud: whether a * b + c rounds once must not hang on a default
