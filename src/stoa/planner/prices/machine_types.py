"""Which accelerators machine types of GCP and Azure have, where price lists give no more than the type's name.

From the providers' public descriptions. Types with a part of an accelerator, and those whose datasheet we have not, are left
out.
"""

from __future__ import annotations

from typing import NamedTuple


class MachineFacts(NamedTuple):
    accelerator: str  # as `accelerators` names it
    accelerators: int


_TYPES: dict[str, dict[int, str]] = {  # by accelerator, and how many of it
    "T4": {1: "Standard_NC4as_T4_v3 Standard_NC8as_T4_v3 Standard_NC16as_T4_v3", 4: "Standard_NC64as_T4_v3"},
    "L4": {
        1: "g2-standard-4 g2-standard-8 g2-standard-12 g2-standard-16 g2-standard-32", 2: "g2-standard-24",
        4: "g2-standard-48", 8: "g2-standard-96",
    },
    "A10": {1: "Standard_NV36ads_A10_v5 Standard_NV36adms_A10_v5", 2: "Standard_NV72ads_A10_v5"},
    "V100": {1: "Standard_NC6s_v3", 2: "Standard_NC12s_v3", 4: "Standard_NC24s_v3 Standard_NC24rs_v3"},
    "V100-32GB": {8: "Standard_ND40rs_v2"},
    "RTX-PRO-6000": {1: "g4-standard-48", 2: "g4-standard-96", 4: "g4-standard-192", 8: "g4-standard-384"},
    "A100-40GB": {
        1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g",
        8: "a2-highgpu-8g Standard_ND96asr_v4 Standard_ND96asr_A100_v4", 16: "a2-megagpu-16g",
    },
    "A100-80GB": {
        1: "a2-ultragpu-1g Standard_NC24ads_A100_v4", 2: "a2-ultragpu-2g Standard_NC48ads_A100_v4",
        4: "a2-ultragpu-4g Standard_NC96ads_A100_v4",
        8: "a2-ultragpu-8g Standard_ND96ams_A100_v4 Standard_ND96amsr_A100_v4",
    },
    "H100": {
        1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g",
        8: "a3-highgpu-8g a3-megagpu-8g a3-edgegpu-8g Standard_ND96is_H100_v5 Standard_ND96isr_H100_v5 "
        "Standard_ND96isf_H100_v5 Standard_ND96isrf_H100_v5 Standard_ND96is_flex_H100_v5 Standard_ND96is_noIB_H100_v5",
    },
    "H100-NVL": {1: "Standard_NC40ads_H100_v5 Standard_NCC40ads_H100_v5", 2: "Standard_NC80adis_H100_v5"},
    "H200": {8: "a3-ultragpu-8g Standard_ND96isr_H200_v5"},
    "B200": {8: "a4-highgpu-8g"},
    "MI300X": {8: "Standard_ND96is_MI300X_v5 Standard_ND96isr_MI300X_v5"},
}  # fmt: skip
_BY_NAME = {
    name.lower(): MachineFacts(accelerator, count)
    for accelerator, by_count in _TYPES.items()
    for count, names in by_count.items()
    for name in names.split()
}


def facts_of(machine: str) -> MachineFacts | None:
    """None: not known here."""
    return _BY_NAME.get(machine.lower())
