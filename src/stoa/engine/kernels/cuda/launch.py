"""The one door through which every Triton kernel starts: a graph or a compiler can stand in for it."""

from __future__ import annotations

from typing import Any, Protocol


class Launch(Protocol):
    """Starts `kernel` once for each point of `grid`. `constants` are its constexpr parameters, by name."""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int, **constants: Any
    ) -> None: ...


def options(warps: int, stages: int, *, early: bool) -> dict[str, Any]:
    """What every launch says beside a kernel's own constants. `early`: the kernel may begin before the one before it has
    ended, and waits for its results where it needs them (`arithmetic.inputs_ready`); from Hopper on."""
    fusion = True  # whether a * b + c rounds once must not hang on Triton's default
    return {
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": fusion,
        "launch_pdl": early,
        "EARLY": early,
    }


def launcher(*, early: bool) -> Launch:
    """Starts kernels on the current stream; with a grid of nothing, not at all."""

    def launch(
        kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int, **constants: Any
    ) -> None:
        if all(grid):
            kernel[grid](*args, **options(warps, stages, early=early), **constants)

    return launch


direct = launcher(early=False)
