"""Facts about the machine that every measurement carries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine_facts() -> dict[str, Any]:
    """CPU, cores, instruction sets, memory, huge pages, versions."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", "").split()
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [f for f in _FLAGS if f in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "memory_free_gib": round(_available_kib() / (1 << 20), 1),
        "huge_pages": _chosen(huge.read_text()) if huge.exists() else "none",
        "python": platform.python_version(),
        "torch": version("torch"),
        "stoa": installed("stoa"),
    }


def installed(package: str) -> str:
    """Empty where it runs from its source, uninstalled."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0


def _chosen(text: str) -> str:
    """`always [madvise] never` -> madvise."""
    return text[text.index("[") + 1 : text.index("]")]
