"""Price lists of single clouds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stoa.errors import ConfigError
from stoa.planner.prices import machine_at, read_aws, read_azure, read_gcp, read_machines
from tests.planner.prices.shared import PRICES, needs_data, write

AWS = (
    "instance_type,gpu_name,gpu_manufacturer,gpu_count,gpu_memory_mib,vcpu,memory_mib,network_mbps,"
    "ondemand_usd_per_h_eu_west_1\n"
    "g5.xlarge,a10g,nvidia,1,22888,4,16384,2500,1.2\n"
    "p5e.48xlarge,h200,nvidia,8,144384,192,2097152,3200000,\n"
    "g6f.large,l4,nvidia,0,2861,2,8192,1500,0.2\n"
)
ADVISOR = (
    "region,instance_type,savings_over_ondemand_pct,interruption_bucket,interruption_label\n"
    "us-east-1,g5.xlarge,90,0,<5%\neu-west-1,g5.xlarge,60,4,>20%\neu-west-1,p5e.48xlarge,50,0,<5%\n"
)


def test_a_spot_price_is_the_on_demand_price_less_the_saving(tmp_path: Path) -> None:
    """Of the same region, which the price column names; the note says how it was reckoned."""
    path, advisor = write(tmp_path, AWS), write(tmp_path, ADVISOR, "advisor.csv")
    g5, p5e, g6f = read_aws(path, advisor)
    assert (g5.region, g5.on_demand_usd, g5.spot_usd) == ("eu-west-1", 1.2, pytest.approx(0.48))
    assert g5.spot_note.startswith("on-demand x (1 - 0.60)")
    assert (p5e.on_demand_usd, p5e.spot_usd, p5e.spot_note) == (None, None, "")
    assert (p5e.accelerator, p5e.accelerators, p5e.accelerator_memory_gib) == ("H200", 8, 141.0)
    assert g6f.accelerators == 0
    assert read_aws(path)[0].spot_usd is None


@pytest.mark.parametrize(
    ("aws", "advisor", "says"),
    [
        (AWS.replace(",1.2\n", ",0\n"), ADVISOR, "line 2: ondemand_usd_per_h_eu_west_1 is '0'"),
        (AWS, ADVISOR.replace("60", "100"), "line 3: savings_over_ondemand_pct is '100'"),
        (AWS, ADVISOR.replace("60", "much"), "line 3: savings_over_ondemand_pct is 'much'"),
        (AWS.replace("_eu_west_1", ""), ADVISOR, "0 price columns; accepted: one"),
    ],
)
def test_impossible_prices_and_savings_are_named_by_line(
    tmp_path: Path, aws: str, advisor: str, says: str
) -> None:
    """In either file."""
    with pytest.raises(ConfigError, match=says):
        read_aws(write(tmp_path, aws), write(tmp_path, advisor, "advisor.csv"))


def test_gcp_and_azure_types_are_described_by_what_is_known_of_them(tmp_path: Path) -> None:
    """Types that are not known have no accelerators until somebody says so."""
    gcp = "region,machine_type,ondemand_usd_per_h,spot_usd_per_h\neu,g2-standard-24,2.0,0.9\neu,g4-standard-6,0.5,\n"
    g2, g4 = read_gcp(write(tmp_path, gcp))
    assert (g2.accelerator, g2.accelerators, g2.accelerator_memory_gib, g2.spot_usd) == ("L4", 2, 24.0, 0.9)
    assert (g4.accelerators, g4.spot_usd) == (0, None)
    azure = "region,vm_size,ondemand_usd_per_h\nwesteurope,Standard_ND96isr_H100_v5,100\n"
    (h100,) = read_azure(write(tmp_path, azure))
    assert (h100.accelerator, h100.accelerators, h100.spot_usd) == ("H100", 8, None)


def test_a_spot_advisor_goes_with_an_aws_list_only(tmp_path: Path) -> None:
    """It knows no other cloud."""
    gcp = write(
        tmp_path, "region,machine_type,ondemand_usd_per_h,spot_usd_per_h\neu,g2-standard-24,2.0,0.9\n"
    )
    with pytest.raises(ConfigError, match="no AWS price list"):
        read_machines(gcp, spot_advisor=gcp)


class TestRealLists:
    """What lies in the shared data folder."""

    pytestmark = needs_data

    def test_aws(self) -> None:
        """Seventy types in one region, most of them with a spot price."""
        path = PRICES / "aws_gpu_instances_ondemand_us_east_1.csv"
        found = read_machines(path, spot_advisor=PRICES / "aws_gpu_spot_advisor.csv")
        assert (len(found), {p.region for p in found}) == (70, {"us-east-1"})
        assert sum(p.spot_usd is not None for p in found) == 49
        p4d = machine_at(found, "p4d.24xlarge", "us-east-1")
        assert (p4d.accelerator, p4d.on_demand_usd, p4d.spot_usd) == (
            "A100-40GB", 21.957642, pytest.approx(21.957642 * 0.33),
        )  # fmt: skip
        assert all(p.spot_usd is None or p.spot_usd > 0 for p in found)

    def test_gcp(self) -> None:
        """All but parts of accelerators are described."""
        found = read_machines(PRICES / "gcp_gpu_machine_types_ondemand_spot.csv")
        known = Counter(p.accelerator for p in found if p.accelerators)
        assert known == {"L4": 144, "RTX-PRO-6000": 80, "H100": 73, "A100-40GB": 43, "A100-80GB": 20}
        assert {p.machine for p in found if not p.accelerators} == {f"g4-standard-{n}" for n in (6, 12, 24)}
        assert all(
            p.spot_usd is None or p.on_demand_usd is None or p.spot_usd < p.on_demand_usd for p in found
        )

    def test_azure(self) -> None:
        """Every type with a whole accelerator that language models run on."""
        found = read_machines(PRICES / "azure_gpu_ondemand.csv.gz")
        described = {p.accelerator for p in found if p.accelerators}
        assert described >= {
            "T4",
            "V100",
            "A10",
            "A100-40GB",
            "A100-80GB",
            "H100",
            "H100-NVL",
            "H200",
            "MI300X",
        }
        left = {p.machine for p in found if not p.accelerators}
        assert not [m for m in left if any(name in m for name in ("A100", "H100", "H200", "MI300X", "T4"))]
