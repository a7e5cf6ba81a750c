"""What accelerators can do, as their makers' datasheets say: not measured, and not all of it is usable.

Arithmetic is dense (without sparsity), in BF16, summed in FP32; T4 and V100 are given with FP16. Where a type is sold in
several forms, the figures are those of the one that clouds rent by the machine: SXM for V100, A100, H100, H200 and B200.
Sizes that datasheets call GB are binary ones, and drivers keep a few percent of them for themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stoa.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`bandwidth_gb_s`: 10^9 bytes a second of its memory; `bf16_tflops`: 10^12 operations a second; `power_w`: at most."""

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    bf16_tflops: float
    power_w: float
    aliases: tuple[str, ...] = ()


ACCELERATORS = (
    Accelerator("T4", 16, 320, 65, 70),
    Accelerator("L4", 24, 300, 121, 72),
    Accelerator("V100", 16, 900, 125, 300, ("V100-16GB", "V100-SXM2-16GB", "V100-SXM2")),
    Accelerator("V100-32GB", 32, 900, 125, 300, ("V100-SXM2-32GB", "V100-SXM3-32GB")),
    Accelerator("A10", 24, 600, 125, 150, ("A10-24GB",)),
    Accelerator("A10G", 24, 600, 70, 300, ("A10G-24GB",)),
    Accelerator("A40", 48, 696, 149.7, 300, ("A40-48GB",)),
    Accelerator("A100-40GB", 40, 1555, 312, 400, ("A100", "A100-SXM4-40GB", "A100-SXM-40GB", "A100-SXM4")),
    Accelerator("A100-80GB", 80, 2039, 312, 400, ("A100-SXM4-80GB", "A100-SXM-80GB", "A100-80GB-SXM")),
    Accelerator("RTX-3090", 24, 936, 71, 350),
    Accelerator("RTX-4090", 24, 1008, 165.2, 450),
    Accelerator("RTX-5090", 32, 1792, 209.5, 575),
    Accelerator("RTX-A6000", 48, 768, 154.8, 300),
    Accelerator("RTX-6000-ADA", 48, 960, 364.2, 300),
    Accelerator("L40S", 48, 864, 362, 350, ("L40S-48GB",)),
    Accelerator("RTX-PRO-6000", 96, 1597, 503.8, 600, ("RTX-PRO-SERVER-6000", "RTX-PRO-6000-BSE")),
    Accelerator(
        "H100", 80, 3350, 989, 700,
        ("H100-80GB", "H100-SXM", "H100-SXM5", "H100-SXM5-80GB", "H100-80GB-HBM3", "H100-MEGA", "H100-MEGA-80GB"),
    ),
    Accelerator("H100-NVL", 94, 3938, 835, 400, ("H100-NVL-94GB",)),
    Accelerator("H200", 141, 4800, 989, 700, ("H200-141GB", "H200-SXM", "H200-SXM-141GB")),
    Accelerator("B200", 180, 8000, 2250, 1000, ("B200-180GB", "B200-SXM")),
    Accelerator("MI300X", 192, 5300, 1307, 750, ("MI300X-192GB", "MI300X-OAM")),
)  # fmt: skip
_MAKERS = re.compile(r"^(nvidia|geforce|amd|tesla|instinct)+")


def find(name: str) -> Accelerator:
    """By any of its names, in any case, with or without its maker and punctuation. ConfigError with the known names."""
    found = by_name(name)
    if found is None:
        raise ConfigError(unknown(name), param="accelerator")
    return found


def unknown(name: str) -> str:
    """What to say of it."""
    known = ", ".join(a.name for a in ACCELERATORS)
    return f"there is no datasheet of an accelerator {name!r}; known: {known}"


def by_name(name: str) -> Accelerator | None:
    """As `find`; None: it is not known."""
    return _BY_NAME.get(_key(name))


def canonical(name: str, memory_gib: float | None = None) -> str:
    """The name that `find` gives, or `name` in capitals where it knows none. `memory_gib` of one: tells apart what
    others call alike (A100, V100)."""
    sized = None if memory_gib is None else _BY_NAME.get(_key(f"{name}-{_nominal_gib(memory_gib)}GB"))
    found = sized or by_name(name)
    return name.strip().upper() if found is None else found.name


def _nominal_gib(memory_gib: float) -> int:
    """What a datasheet would call it: 39.6 and 40 GiB are a 40 GB part, 79.6 an 80 GB one."""
    sizes = sorted({round(a.memory_gib) for a in ACCELERATORS})
    return min(sizes, key=lambda size: abs(size - memory_gib))


def _key(name: str) -> str:
    return _MAKERS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))


_BY_NAME = {_key(name): a for a in ACCELERATORS for name in (a.name, *a.aliases)}
