"""Which accelerators machine types of GCP and Azure have, where price lists give no more than the type's name.

From the providers' public descriptions. Types with a part of an accelerator, and those whose datasheet we have not, are left
out.
"""

from __future__ import annotations

from typing import NamedTuple


class MachineFacts(NamedTuple):
    accelerator: str  # as `accelerators` names it
    accelerators: int
    vcpus: int
    memory_gib: float


def _scaled(
    name: str, accelerator: str, vcpus: int, memory_gib: float, *counts: int
) -> dict[str, MachineFacts]:
    """`name` with its number of accelerators; vCPUs and memory are those of each."""
    return {name.format(n): MachineFacts(accelerator, n, n * vcpus, n * memory_gib) for n in counts}


GCP: dict[str, MachineFacts] = {
    **_scaled("a2-highgpu-{}g", "A100-40GB", 12, 85, 1, 2, 4, 8),
    "a2-megagpu-16g": MachineFacts("A100-40GB", 16, 96, 1360),
    **_scaled("a2-ultragpu-{}g", "A100-80GB", 12, 170, 1, 2, 4, 8),
    **_scaled("a3-highgpu-{}g", "H100", 26, 234, 1, 2, 4, 8),
    "a3-megagpu-8g": MachineFacts("H100", 8, 208, 1872),
    "a3-edgegpu-8g": MachineFacts("H100", 8, 208, 1872),
    "a3-ultragpu-8g": MachineFacts("H200", 8, 224, 2952),
    "a4-highgpu-8g": MachineFacts("B200", 8, 224, 3968),
    **{f"g2-standard-{n}": MachineFacts("L4", 1, n, 4 * n) for n in (4, 8, 12, 16, 32)},
    **{f"g2-standard-{n}": MachineFacts("L4", n // 12, n, 4 * n) for n in (24, 48, 96)},
    **{f"g4-standard-{n}": MachineFacts("RTX-PRO-6000", n // 48, n, 3.75 * n) for n in (48, 96, 192, 384)},
}
AZURE: dict[str, MachineFacts] = {
    "Standard_NC4as_T4_v3": MachineFacts("T4", 1, 4, 28),
    "Standard_NC8as_T4_v3": MachineFacts("T4", 1, 8, 56),
    "Standard_NC16as_T4_v3": MachineFacts("T4", 1, 16, 110),
    "Standard_NC64as_T4_v3": MachineFacts("T4", 4, 64, 440),
    "Standard_NC6s_v3": MachineFacts("V100", 1, 6, 112),
    "Standard_NC12s_v3": MachineFacts("V100", 2, 12, 224),
    "Standard_NC24s_v3": MachineFacts("V100", 4, 24, 448),
    "Standard_NC24rs_v3": MachineFacts("V100", 4, 24, 448),
    "Standard_ND40rs_v2": MachineFacts("V100-32GB", 8, 40, 672),
    "Standard_NV36ads_A10_v5": MachineFacts("A10", 1, 36, 440),
    "Standard_NV36adms_A10_v5": MachineFacts("A10", 1, 36, 880),
    "Standard_NV72ads_A10_v5": MachineFacts("A10", 2, 72, 880),
    "Standard_NC24ads_A100_v4": MachineFacts("A100-80GB", 1, 24, 220),
    "Standard_NC48ads_A100_v4": MachineFacts("A100-80GB", 2, 48, 440),
    "Standard_NC96ads_A100_v4": MachineFacts("A100-80GB", 4, 96, 880),
    "Standard_ND96asr_v4": MachineFacts("A100-40GB", 8, 96, 900),
    "Standard_ND96asr_A100_v4": MachineFacts("A100-40GB", 8, 96, 900),
    "Standard_ND96ams_A100_v4": MachineFacts("A100-80GB", 8, 96, 1900),
    "Standard_ND96amsr_A100_v4": MachineFacts("A100-80GB", 8, 96, 1900),
    "Standard_NC40ads_H100_v5": MachineFacts("H100-NVL", 1, 40, 320),
    "Standard_NC80adis_H100_v5": MachineFacts("H100-NVL", 2, 80, 640),
    "Standard_NCC40ads_H100_v5": MachineFacts("H100-NVL", 1, 40, 320),
    **{
        f"Standard_ND96{form}_H100_v5": MachineFacts("H100", 8, 96, 1900)
        for form in ("is", "isr", "isf", "isrf", "is_flex", "is_noIB")
    },
    "Standard_ND96isr_H200_v5": MachineFacts("H200", 8, 96, 1850),
    "Standard_ND96is_MI300X_v5": MachineFacts("MI300X", 8, 96, 1850),
    "Standard_ND96isr_MI300X_v5": MachineFacts("MI300X", 8, 96, 1850),
}
_BY_NAME = {name.lower(): facts for table in (GCP, AZURE) for name, facts in table.items()}


def facts_of(machine: str) -> MachineFacts | None:
    """None: not known here."""
    return _BY_NAME.get(machine.lower())
