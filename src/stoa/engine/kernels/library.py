"""The shared library of C kernels: found, loaded and asked what the machine has. No torch here."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from ctypes import c_double, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")  # index = the number used in C
_PROBE_BYTES = 1 << 29

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "stoa_start": (c_int,),
    "stoa_linear": (c_void_p,) * 5 + (c_int64,) * 4,
    "stoa_rms_norm": (c_void_p, c_void_p, c_void_p, c_double, c_void_p, c_int64, c_int64),
    "stoa_silu_mul": (c_void_p, c_void_p, c_void_p, c_int64, c_int64),
    "stoa_rope_append": (c_void_p,) * 9 + (c_int64, c_int64, c_double),
    "stoa_attention": (c_void_p,) * 6 + (c_int64, c_int64, c_int64, c_double),
    "stoa_play": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "stoa_pack": (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64),
    "stoa_quantize": (c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    "stoa_draw": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "stoa_free_buffer": (c_void_p, c_int64),
}


@functools.cache
def _load() -> tuple[Any, str]:
    """(library, "") or (None, why not)."""
    found = sorted(Path(__file__).parent.glob("_cpu*.so"))
    if not found:
        return (
            None,
            "the C kernels were not built (no C compiler at install): running on slower torch kernels",
        )
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the C kernels do not load ({error}): running on slower torch kernels"
    for name, arguments in _SIGNATURES.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = None
    lib.stoa_ops.argtypes = (c_int, c_int)
    lib.stoa_ops.restype = c_void_p
    lib.stoa_all_finite.argtypes = (c_void_p, c_int64, c_int64, c_uint32, c_int64)
    lib.stoa_all_finite.restype = c_int
    lib.stoa_read_buffer.argtypes = (c_int64,)
    lib.stoa_read_buffer.restype = c_void_p
    lib.stoa_read_all.argtypes = (c_void_p, c_int64)
    lib.stoa_read_all.restype = c_uint64
    return lib, ""


def library() -> Any:
    lib, reason = _load()
    if lib is None:
        raise ConfigError(reason)
    return lib


def all_finite(bits: NDArray[np.unsignedinteger[Any]], exponent: int, *, pooled: bool = False) -> bool:
    """Floats as whole numbers: is in none of them every bit of `exponent` set, as in NaN and infinity? `pooled`: looks
    with all threads, while no step runs."""
    lib, _ = _load()
    if lib is None or not bits.flags.c_contiguous:
        mask = bits.dtype.type(exponent)
        return not bool(((bits & mask) == mask).any())
    return bool(lib.stoa_all_finite(bits.ctypes.data, bits.size, bits.itemsize, exponent, pooled))


def missing_reason() -> str:
    """Why the C kernels are not used, or ""."""
    return _load()[1]


def available_isas() -> list[str]:
    """Paths this machine can run, slowest first; empty without the library."""
    lib, _ = _load()
    return list(ISAS[: lib.stoa_best_isa() + 1]) if lib is not None else []


def choose_isa(asked: str | None) -> str:
    """The path to use: `asked`, else STOA_ISA, else the best. ConfigError if the machine lacks it."""
    have = available_isas()
    asked = asked or os.environ.get("STOA_ISA") or None
    if asked is None:
        return have[-1]
    if asked not in have:
        raise ConfigError(f"isa {asked!r} is not available; accepted here: {', '.join(have)}", param="isa")
    return asked


def default_threads() -> int:
    return len(os.sched_getaffinity(0))


def measure_read_bandwidth(threads: int | None = None) -> float:
    """GB/s that all threads together read from memory: the best of several passes over 512 MiB."""
    lib, _ = _load()
    if lib is None:
        data = np.ones(_PROBE_BYTES // 8, dtype=np.int64)
        return _best_rate(lambda: data.max())
    lib.stoa_start(threads or default_threads())
    buffer = lib.stoa_read_buffer(_PROBE_BYTES)
    try:
        return _best_rate(lambda: lib.stoa_read_all(buffer, _PROBE_BYTES))
    finally:
        lib.stoa_free_buffer(buffer, _PROBE_BYTES)


def _best_rate(read: Any, passes: int = 7) -> float:
    best = float("inf")
    for _ in range(passes):
        started = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - started)
    return _PROBE_BYTES / best / 1e9
