"""SkyPilot's catalogs, as they have been laid out over the years."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoa.errors import ConfigError
from stoa.planner.prices import machine_at, read_machines, read_skypilot
from tests.planner.prices.shared import write

V1 = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice\n"
GPUS = (
    "\"{'Gpus': [{'Name': '%s', 'Count': 8.0, 'MemoryInfo': {'SizeInMiB': %d}}], 'TotalGpuMemoryInMiB': 1}\""
)


def test_a_line_is_a_machine_in_a_zone(tmp_path: Path) -> None:
    """The size of GPUs is that of one, and tells an A100 from an A100."""
    info = GPUS % ("A100", 81920)
    path = write(tmp_path, V1 + f"p4de.24xlarge,96.0,1152.0,A100,8.0,{info},us-east-1,use1-az1,27.4,8.2\n")
    (found,) = read_skypilot(path, "aws")
    assert (found.provider, found.region, found.zone) == ("aws", "us-east-1", "use1-az1")
    assert (found.accelerator, found.accelerators, found.accelerator_memory_gib) == ("A100-80GB", 8, 80.0)
    assert (found.on_demand_usd, found.spot_usd) == (27.4, 8.2)


def test_columns_may_stand_elsewhere_and_some_be_missing(tmp_path: Path) -> None:
    """Other clouds' files: no zones, an architecture, JSON instead of Python, a size in GiB."""
    text = (
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,Arch\n"
        'gpu_8x,V100,8,88.0,448.0,6.32,us-east-1,"{""Gpus"": [{""MemoryInfo"": {""SizeInMiB"": 16384}}]}",,x86_64\n'
        "1x_A100,A100-80GB,1.0,8.0,117.0,1.39,IN,{'Gpus': [{'MemoryInfo': {'SizeInMiB': 80}}]},1.39,\n"
        "old,L4,1,,,0.5,us,L4,,\n"
    )
    v100, a100, l4 = read_skypilot(write(tmp_path, text), "lambda")
    assert (v100.zone, v100.accelerator_memory_gib, v100.spot_usd) == (None, 16.0, None)
    assert (a100.accelerator, a100.accelerator_memory_gib) == ("A100-80GB", 80.0)
    assert l4.accelerator_memory_gib == 24.0


def test_host_and_accelerators_that_are_sold_apart_are_added(tmp_path: Path) -> None:
    """As GCP sells them; machines without a line for their accelerators are left out, as are those that have none."""
    text = V1 + (
        "a2-highgpu-2g,24.0,170.0,,,,us-central1,us-central1-a,1.5,0.7\n"
        "a2-highgpu-1g,12.0,85.0,,,,us-central1,us-central1-a,0.75,0.35\n"
        "a3-megagpu-8g,208.0,1872.0,,,,us-central1,us-central1-a,9.5,\n"
        "n2-standard-8,8.0,32.0,,,,us-central1,us-central1-a,0.39,0.1\n"
        ",,,A100,2,{'Gpus': [{'MemoryInfo': {'SizeInMiB': 40960}}]},us-central1,us-central1-a,5.87,2.0\n"
        ",,,A100-80GB,2,{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]},us-central1,us-central1-a,9.0,3.0\n"
        ",,,H100,8,{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]},us-central1,us-central1-a,33.0,24.0\n"
        ",,,H100-MEGA,8,{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]},us-central1,us-central1-a,82.0,25.0\n"
        ",,,tpu-v6e-4,1,tpu-v6e-4,us-central1,us-central1-a,0,0\n"
    )
    a100, h100 = read_skypilot(write(tmp_path, text), "gcp")
    assert (a100.machine, a100.accelerator, a100.accelerators) == ("a2-highgpu-2g", "A100-40GB", 2)
    assert (a100.on_demand_usd, a100.spot_usd) == (pytest.approx(7.37), pytest.approx(2.7))
    assert "their sum" in a100.note
    assert (h100.machine, h100.on_demand_usd, h100.spot_usd) == ("a3-megagpu-8g", 91.5, None)


def test_the_provider_is_the_folders_name(tmp_path: Path) -> None:
    """As catalogs lie in folders."""
    (tmp_path / "lambda").mkdir()
    path = write(tmp_path / "lambda", V1 + "x,8,16,L4,1,,us,,0.5,\n", "vms.csv")
    assert read_machines(path)[0].provider == "lambda"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x,8,16,L4,1,,us,,0,", "line 3: price is '0'; accepted: a price above 0"),
        ("x,8,16,L4,1,,us,,-1,", "line 3: price is '-1'"),
        ("x,8,16,L4,1,,us,,1,0.0", "line 3: spotprice is '0.0'"),
        ("x,8,16,L4,1,,us,,cheap,", "line 3: price is 'cheap'"),
        ("x,8,16,L4,1,,us,,inf,", "line 3: price is 'inf'"),
        ("x,8,16,L4,none,,us,,1,", "line 3: acceleratorcount is 'none'"),
        ("x,8,16,L4,1,,us,1,", "line 3: 9 fields instead of 10"),
    ],
)
def test_a_wrong_price_is_named_by_its_line(tmp_path: Path, line: str, says: str) -> None:
    """File, line and column."""
    with pytest.raises(ConfigError, match=says):
        read_skypilot(write(tmp_path, V1 + "y,8,16,L4,1,,us,,1,\n" + line + "\n"))


def test_prices_of_other_regions_are_nobodys_trouble(tmp_path: Path) -> None:
    """Of a catalog of the whole world, the region asked for is read."""
    path = write(tmp_path, V1 + "x,8,16,L4,1,,us,,0,\nx,8,16,L4,1,,eu,,0.7,nan\n")
    (found,) = read_skypilot(path, regions={"eu"})
    assert (found.on_demand_usd, found.spot_usd) == (0.7, None)


def test_of_several_zones_the_cheapest_counts(tmp_path: Path) -> None:
    """On demand and spot each; a named zone is taken as it is, and regions are not mixed."""
    lines = "x,8,16,L4,1,,us,us-a,0.8,0.3\nx,8,16,L4,1,,us,us-b,0.7,0.4\nx,8,16,L4,1,,eu,eu-a,0.9,\n"
    found = read_skypilot(write(tmp_path, V1 + lines))
    both = machine_at(found, "X", "us")
    assert (both.zone, both.on_demand_usd, both.spot_usd) == (None, 0.7, 0.3)
    assert machine_at(found, "x", "us", "us-b").spot_usd == 0.4
    with pytest.raises(ConfigError, match="several regions; name one of eu, us"):
        machine_at(found, "x")
    with pytest.raises(ConfigError, match="no machine 'y' among the prices; there is x"):
        machine_at(found, "y", "us")
    with pytest.raises(ConfigError, match="no region for x 'asia'"):
        machine_at(found, "x", "asia")


def test_a_file_in_no_layout_is_refused_with_the_layouts(tmp_path: Path) -> None:
    """And one that is not there."""
    with pytest.raises(ConfigError, match=r"no layout; accepted: SkyPilot: instancetype.*GCP: region"):
        read_machines(write(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(ConfigError, match="No such file"):
        read_machines(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match="no column acceleratorname"):
        read_skypilot(write(tmp_path, "InstanceType,Region,AcceleratorCount,Price\n"))
