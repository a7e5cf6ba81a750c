"""How far profiles from datasheets are from measured steps, and which constants bring them nearest.

python benchmarks/roofline.py --data ../shared/data/profiles [--calibrate]

`--calibrate` looks for better constants, one after the other, where each group (source, model, accelerators, prefill or
decode) weighs alike; and leaves out each accelerator in turn: what is foretold for it then comes from the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stoa.errors import ConfigError
from stoa.planner.accelerators import find
from stoa.planner.prices.rows import read_rows
from stoa.planner.profiles.catalog import find_model
from stoa.planner.profiles.models import ModelShape, decoder
from stoa.planner.profiles.roofline import MEASURED, Efficiency, roofline

BLOOM = decoder(
    "bloom-176b", layers=70, hidden=14_336, heads=112, kv_heads=112, vocab=250_880, tied=True,
    intermediate=57_344 * 2 // 3,  # its MLPs are two matrices, not three
)  # fmt: skip
SPLITWISE = {"a100-80gb": "A100-80GB", "h100-80gb": "H100"}
HELIX = {"a100": "A100-40GB", "l4": "L4", "t4": "T4", "v100": "V100"}
CONTEXT = 1000  # of a sequence in Helix's decode tables, which do not say it: near the requests of its paper
FITTED = (
    "bandwidth", "arithmetic", "arithmetic_low", "layer_s", "layer_sum_s", "link_gb_s", "bus_gb_s",
)  # fmt: skip
START = Efficiency(  # not what was found before: that has seen all points
    bandwidth=0.8,
    arithmetic=0.6,
    arithmetic_low=0.6,
    layer_s=1e-4,
    layer_sum_s=1e-4,
    link_gb_s=50,
    bus_gb_s=10,
)
SHARES = ("bandwidth", "arithmetic", "arithmetic_low")


@dataclass(frozen=True)
class Point:
    source: str
    shape: ModelShape
    accelerator: str
    count: int
    kind: str
    rows: float
    context: float
    seconds: float

    @property
    def group(self) -> tuple[str, str, str, int, str]:
        return self.source, self.shape.name, self.accelerator, self.count, self.kind


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/profiles"))
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()
    points = [*splitwise(args.data / "splitwise_perf_model.csv.gz"), *helix(args.data / "helix")]
    report("all constants", points, errors(points, MEASURED))
    if args.calibrate:
        print("\nbest:", {name: float(f"{getattr(calibrated(points), name):.3g}") for name in FITTED})
        foretold = np.zeros(len(points))
        names = np.array([p.accelerator for p in points])
        for name in sorted(set(names)):
            others = calibrated([p for p in points if p.accelerator != name])
            foretold[names == name] = errors([p for p in points if p.accelerator == name], others)
        report("each accelerator foretold from the others", points, foretold)


def report(title: str, points: list[Point], off: np.ndarray) -> None:
    print(
        f"\n{title}: {len(points)} points, mean {np.abs(off).mean():.1%}, median {np.median(np.abs(off)):.1%}"
    )
    groups = defaultdict(list)
    for point, error in zip(points, off, strict=True):
        groups[point.accelerator, point.kind].append(error)
    for (accelerator, kind), found in sorted(groups.items()):
        print(
            f"  {accelerator:10} {kind:8} {np.mean(found):+.0%} on average, {np.mean(np.abs(found)):.0%} off"
        )


# -- measured steps


def splitwise(path: Path) -> list[Point]:
    """Medians of repeats. Batches of 64 on two accelerators are left out: they did not fit, and have odd times."""
    found: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in read_rows(path, ["model"]):
        if row.text("hardware") not in SPLITWISE:
            continue
        prompt, batch, tokens, count = (
            int(row.text(name)) for name in ("prompt_size", "batch_size", "token_size", "tensor_parallel")
        )
        if count == 2 and batch == 64:
            continue
        on = (row.text("model"), SPLITWISE[row.text("hardware")], count)
        found[*on, "prefill", batch * prompt, 0.0].append(float(row.text("prompt_time")) / 1e3)
        found[*on, "decode", batch, batch * (prompt + tokens / 2)].append(float(row.text("token_time")) / 1e3)
    points = []
    for (model, accelerator, count, kind, rows, context), seconds in found.items():
        shape = BLOOM if model == BLOOM.name else find_model(str(model))
        points.append(
            Point("splitwise", shape, accelerator, count, kind, rows, context, float(np.median(seconds)))
        )
    return points


def helix(folder: Path) -> list[Point]:
    """Times of one layer: of a model of one layer without embeddings."""
    points = []
    for path in sorted(folder.glob("*_bs2time.csv")):
        model, machine, kind = path.name.removesuffix("_bs2time.csv").split("__")
        kind = "prefill" if kind.startswith("prompt") else "decode"
        name, _, count = machine.partition("x")
        shape = find_model(model)
        layer = shape.in_row / shape.layers
        one = dataclasses.replace(
            shape, parameters=layer, row_parameters=layer, step_parameters=layer, layers=1
        )
        for line in path.read_text().split():
            size, milliseconds = (float(cell) for cell in re.split(",", line))
            if size:
                context = size * CONTEXT if kind == "decode" else 0.0
                points.append(
                    Point("helix", one, HELIX[name], int(count or 1), kind, size, context, milliseconds / 1e3)
                )
    return points


# -- errors and constants


def errors(points: list[Point], efficiency: Efficiency) -> np.ndarray:
    """Foretold over measured, less 1."""
    roomy = dataclasses.replace(efficiency, memory=100.0)  # tables of layers are of models that would not fit
    profiles = {
        p.group[1:4]: roofline(p.shape, find(p.accelerator), p.count, efficiency=roomy) for p in points
    }
    return np.array(
        [
            profiles[p.group[1:4]].step_s(
                *((p.rows, 0) if p.kind == "prefill" else (0, p.rows)), context_tokens=p.context
            )
            / p.seconds
            - 1
            for p in points
        ]
    )


def calibrated(points: list[Point]) -> Efficiency:
    """Coordinate search on the mean over groups of |log error|."""
    members = defaultdict(list)
    for i, point in enumerate(points):
        members[point.group].append(i)

    def cost(efficiency: Efficiency) -> float:
        off = np.abs(np.log1p(errors(points, efficiency)))
        return float(np.mean([off[each].mean() for each in members.values()]))

    best, least = START, cost(START)
    for _ in range(15):
        for name in FITTED:
            for factor in (0.7, 0.9, 0.97, 1.03, 1.1, 1.4):
                tried = dataclasses.replace(best, **{name: getattr(best, name) * factor})
                if any(getattr(tried, share) > 1 for share in SHARES):
                    continue
                if (found := cost(tried)) < least:
                    best, least = tried, found
    return best


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(error.message) from None
