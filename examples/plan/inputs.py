"""Writes the files beside the three plan.toml from public data: prices, hosted models, measured times, demand.

python examples/plan/inputs.py [--data ../shared/data]

The data is not part of this project; README.md says where each file of it is from. Demand is the first day of a ServeGen
trace, by period, size and project. Projects that no rule, service or origin names are one. Printed are the margins that
the same day asks for (docs/planner-input.md, `safety.within`): they stand in the plan.toml.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stoa.planner import prices
from stoa.planner.files import read_inputs
from stoa.planner.files.arrivals import read_trace
from stoa.planner.files.clock import assumed_start, read_clock
from stoa.planner.files.decode import read_document
from stoa.planner.files.demand import Kind, Who, bucketed
from stoa.planner.files.document import Document
from stoa.planner.prices import MachinePrice
from stoa.planner.prices.rows import read_rows
from stoa.planner.profiles.steps import Step, typical
from stoa.planner.profiles.table import OWN, SPLITWISE

HERE = Path(__file__).parent
DAY_S = 86_400.0
AWS, SPOT = "prices/aws_gpu_instances_ondemand_us_east_1.csv", "prices/aws_gpu_spot_advisor.csv"
GCP, HOSTED = "prices/gcp_gpu_machine_types_ondemand_spot.csv", "prices/llm_api_prices.json"
TIMES = "profiles/splitwise_perf_model.csv.gz"
CATALOG = (
    "InstanceType", "AcceleratorName", "AcceleratorCount", "GpuInfo", "Region", "AvailabilityZone", "Price", "SpotPrice",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """`catalogs`: file beside the plan.toml -> list of a cloud. `trace`: where the demand is from."""

    name: str
    catalogs: dict[str, str]
    trace: str
    hosted: tuple[str, ...] = ()
    times: bool = False


EXAMPLES = (
    Example(
        "company", {"machines.csv": GCP}, "traces/servegen_mid_2days.csv.gz", ("deepinfra/Qwen/Qwen3-14B",)
    ),
    Example("saas", {"aws.csv": AWS, "gcp.csv": GCP}, "traces/servegen_mid_2days.csv.gz", times=True),
    Example("lab", {"aws.csv": AWS, "gcp.csv": GCP}, "traces/servegen_small_2days.csv.gz"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    for example in EXAMPLES:
        write_all(example, data, HERE / example.name)
        found = margins(HERE / example.name / "plan.toml", data / example.trace)
        print(f"{example.name}: margin = {json.dumps(found)}")


def write_all(example: Example, data: Path, folder: Path) -> None:
    """Beside the plan.toml of the folder."""
    document = read_document(folder / "plan.toml")
    for name, source in example.catalogs.items():
        write(folder / name, CATALOG, catalog(document, name, data, source))
    if example.hosted:
        every = json.loads((data / HOSTED).read_text())
        chosen = {name: every[name] for name in example.hosted}
        (folder / "hosted.json").write_text(json.dumps(chosen, indent=1) + "\n")
    if example.times:
        write(folder / "times.csv", OWN, times(data))
    header = ("project", "period", "prompt_tokens", "output_tokens", "requests_per_s")
    write(folder / "demand.csv", header, demand(document, data / example.trace))


def write(path: Path, header: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *rows])


# -- prices


def catalog(document: Document, name: str, data: Path, source: str) -> Iterator[Sequence[Any]]:
    """Rows of the machines that the document's place names."""
    (place,) = (p for p in document.place if p.prices == name)
    advisor = data / SPOT if source == AWS else None
    found = prices.read_machines(data / source, spot_advisor=advisor, region=place.region)
    for machine in place.machine:
        p = prices.machine_at(found, machine.type, place.region)
        usd = (rounded(p.on_demand_usd), rounded(p.spot_usd))
        yield p.machine, p.accelerator, p.accelerators, gpu_info(p), p.region, "", *usd


def rounded(usd: float | None) -> str:
    return "" if usd is None else f"{usd:.4f}"


def gpu_info(p: MachinePrice) -> str:
    """As catalogs have it: a literal of Python."""
    assert p.accelerator_memory_gib is not None
    mib = round(p.accelerator_memory_gib * 1024)
    return str({"Gpus": [{"Name": p.accelerator, "Count": p.accelerators, "MemoryInfo": {"SizeInMiB": mib}}]})


# -- measured times


def times(data: Path) -> Iterator[Sequence[Any]]:
    """Splitwise's table of Llama 2 70B: a step a line, the median of its repetitions."""
    names = {"a100-80gb": "A100-80GB", "h100-80gb": "H100"}
    steps: dict[str, list[Step]] = {}
    for row in read_rows(data / TIMES, SPLITWISE):
        if row.text("model") == "llama2-70b" and row.text("hardware") in names:
            machine = f"{row.text('tensor_parallel')} x {names[row.text('hardware')]}"
            batch, prompt, tokens = (float(row.text(c)) for c in ("batch_size", "prompt_size", "token_size"))
            first_s, next_s = (float(row.text(c)) / 1e3 for c in ("prompt_time", "token_time"))
            each = steps.setdefault(machine, [])
            each += (
                Step(batch * prompt, 0, 0, first_s),
                Step(0, batch, batch * (prompt + tokens / 2), next_s),
            )
    for machine, found in steps.items():
        for s in typical(found):
            kind, context = ("prefill", "") if s.prompt_rows else ("decode", f"{s.context_tokens:g}")
            yield (
                machine,
                "llama-2-70b",
                kind,
                f"{s.prompt_rows + s.decode_rows:g}",
                context,
                f"{s.seconds:.5f}",
            )


# -- demand


def demand(document: Document, trace: Path) -> Iterator[Sequence[Any]]:
    """The trace's first day: requests a second by project, period and size, before `scale`."""
    named = [*(r.projects for r in document.rule), *(o.projects for o in document.origin)]
    named += [s.match.projects for s in document.service]
    patterns = [p for projects in named for p in projects if p != "*"]
    clock = read_clock(document.periods, document.time_zone)

    def kind_of(who: Who) -> Kind:
        return Kind("", who.project if any(fnmatchcase(who.project, p) for p in patterns) else "")

    found = bucketed(
        read_trace(trace, clock.zone), clock, assumed_start(clock), kind_of,
        document.demand.prompt_edges, document.demand.output_edges, 0.0, DAY_S,
    )  # fmt: skip
    for size in found.sizes:
        tokens = (round(size.prompt_tokens), round(size.output_tokens))
        for period, rate in zip(clock.periods, np.array(size.counts) / found.seconds, strict=True):
            if rate > 0:
                yield size.kind.group, period.name, *tokens, f"{rate:.5g}"


def margins(path: Path, trace: Path) -> dict[str, float]:
    """By period, of the same demand straight from the trace."""
    document = tomllib.loads(path.read_text())
    document["safety"].pop("margin")
    del document["demand"]["table"]
    document["demand"] |= {"trace": str(trace.resolve()), "until": "1 d"}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=path.parent) as file:
        yaml.safe_dump(document, file)
        file.flush()
        problem = read_inputs(Path(file.name)).problem
    return {p.name: round(m, 2) for p, m in zip(problem.periods, problem.rules.margin, strict=True)}


if __name__ == "__main__":
    main()
