"""What a fleet costs under each autoscaler, tuned alike, on real requests and real spot machines.

    python benchmarks/elasticity.py --data ../shared/data --spot DIR --out docs/results/elasticity.json
    python benchmarks/elasticity.py … --only hpa,spothedge --factor 10 --seeds 2     # a quick look
    python benchmarks/elasticity.py … --params docs/results/elasticity.json          # tuned before

Each candidate's parameters are searched on the first day by the same coordinate descent with the same number of runs; the
cheapest that answers 99 % of the requests in time is kept and measured on the second day, which nothing was tuned to,
over seeds that differ in the jitter of the requests and in where the spot traces begin. DIR is spot_traces.tar.xz unpacked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from about import about
from candidates import Candidate, candidates

from stoa.fleet.policies.facts import Bounds, Slo
from stoa.fleet.policies.profile import Profile
from stoa.simulator import Options, Requests, Result, Zone, load_requests, read_spot, scale_rate, simulate
from stoa.simulator.baselines import Both, OnDemand, StaticPeak
from stoa.simulator.baselines.clairvoyant import Clairvoyant, Foresight
from stoa.simulator.optimum import Optimum, lower_bound
from stoa.simulator.optimum_plan import course, in_order_plan
from stoa.simulator.optimum_work import row_work
from stoa.simulator.traces import join

DAY_S = 86_400.0
SLO = Slo(ttft_s=2.0, attainment=0.99)

# Llama-2-70B on two A100-80GB, tensor parallel: fitted to the medians of splitwise_perf_model.csv (prompts of 512-8192
# tokens, batches of 1-64). What is left of 160 GB for context: 200,000 tokens.
PROFILE = Profile(
    name="llama2-70b on 2 x A100-80GB",
    fixed_s=0.052,
    prompt_row_s=0.00033,
    decode_row_s=0.0003,
    context_token_s=2e-8,
    max_num_seqs=128,
    max_batch_tokens=1024,
    kv_tokens=200_000,
)
# A quarter of a p4de.24xlarge (8 x A100-80GB): on demand in us-east-1, and the spot advisor's saving in each region
# (us-east-2 has no p4de in it: p4d.24xlarge's).
HOURLY = 27.44705 / 4
SAVING = {"us-east-1": 0.65, "us-east-2": 0.66, "us-west-2": 0.67}


@dataclass(frozen=True)
class World:
    """Where and on what a candidate is run."""

    data: Path
    spot: Path
    trace: str = "servegen_mid_2days"
    factor: float = 40.0
    jitter_s: float = 300.0
    startup_s: float = 120.0
    per_zone: int = 8  # replicas that a zone has when its trace says a machine can be had
    notice_s: float = 120.0
    inverted: bool = False

    def requests(self, seed: int) -> Requests:
        whole = load_requests(self.data / "traces" / f"{self.trace}.csv.gz")
        return join(scale_rate([whole], self.factor, seed=seed, jitter_s=self.jitter_s))

    def zones(self, seed: int, spot: bool) -> list[Zone]:
        """`seed` moves the beginning of the spot traces by 4.7 days."""
        if not spot:
            return [Zone("on-demand", on_demand_hourly=HOURLY, startup_s=self.startup_s)]
        zones = []
        for path in sorted((self.spot / "availability/1-node/aws-02-15-2023").glob("*.json")):
            name = path.name.split("_")[0]
            trace = read_spot(path, offset_s=seed * 4.7 * DAY_S, scale=self.per_zone, inverted=self.inverted)
            price = HOURLY * (1 - SAVING[name[:-1]])
            zones.append(Zone(name, HOURLY, price, trace, self.startup_s))
        return zones


# -- running


def run(
    c: Candidate, params: dict[str, Any], world: World, requests: Requests, *, seed: int, day: int
) -> Result:
    """Day 0 is measured from its second hour; day 1 after the whole of day 0."""
    return simulate(
        [requests],
        world.zones(seed, c.spot),
        PROFILE,
        c.make(**params),
        slo=SLO,
        bounds=Bounds(min_replicas=1),
        seed=seed,
        until_s=(day + 1) * DAY_S,
        options=Options(measure_from_s=DAY_S if day else 3600.0, notice_s=world.notice_s, order=c.order),
    )


def tune(
    c: Candidate,
    world: World,
    requests: Requests,
    *,
    runs: int,
    log: Callable[[str], None],
    seed: int = 0,
    day: int = 0,
) -> dict[str, Any]:
    """Coordinate descent: parameter by parameter, the cheapest value with which the target is kept, else the nearest to
    keeping it. Where no step is better any more it begins again at a point that is drawn, until `runs` are used up."""
    seen: dict[tuple[Any, ...], tuple[float, float]] = {}
    rng = random.Random(0)

    def rank(params: dict[str, Any]) -> tuple[float, float]:
        key = tuple(params.items())
        if key not in seen:
            result = run(c, params, world, requests, seed=seed, day=day)
            seen[key] = (max(0.0, SLO.attainment - result.attainment), result.cost_usd)
            log(f"    {params} {result.attainment:.4f} {result.cost_usd:.0f} USD")
        return seen[key]

    points = math.prod(len(values) for values in c.grid.values())
    best = start = dict(c.start)
    while c.grid and len(seen) < min(runs, points):
        best = min(best, _descend(start, c.grid, rank, lambda: len(seen) < runs), key=rank)
        start = {name: rng.choice(list(values)) for name, values in c.grid.items()}
    return best


def _descend(
    at: dict[str, Any],
    grid: dict[str, Sequence[Any]],
    rank: Callable[[dict[str, Any]], tuple[float, float]],
    goes_on: Callable[[], bool],
) -> dict[str, Any]:
    changed = True
    while changed and goes_on():
        changed = False
        for name, step in itertools.product(grid, (1, -1)):
            values = list(grid[name])
            i = values.index(at[name]) + step
            while 0 <= i < len(values) and goes_on() and rank(at | {name: values[i]}) < rank(at):
                at, changed = at | {name: values[i]}, True
                i += step
    return at


def static_peak(world: World, requests: Requests, *, seed: int, day: int) -> tuple[int, Result]:
    """The fewest replicas that keep the target on the very day they are measured on, to 1 %."""
    counted = cut(requests, day * DAY_S, (day + 1) * DAY_S)
    low = max(
        1, int(sum(w.sum() for w in row_work(PROFILE, counted)) / DAY_S)
    )  # less than the work needs on average
    high = 2 * low
    while (result := _static(high, world, requests, seed, day)).attainment < SLO.attainment:
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        tried = _static(middle, world, requests, seed, day)
        if tried.attainment >= SLO.attainment:
            high, result = middle, tried
        else:
            low = middle
    return high, result


def _static(count: int, world: World, requests: Requests, seed: int, day: int) -> Result:
    """Of the day, with an hour before it: nothing is learned, so there is nothing to see of earlier days."""
    begin_s = max(0.0, day * DAY_S - 3600.0)
    part, end_s = cut(requests, begin_s, (day + 1) * DAY_S), (day + 1) * DAY_S - begin_s
    return simulate(
        [part], world.zones(seed, False), PROFILE, Both(StaticPeak(count), OnDemand()),
        slo=SLO, seed=seed, until_s=end_s, options=Options(measure_from_s=3600.0, order="arrival"),
    )  # fmt: skip


def cut(requests: Requests, begin_s: float, end_s: float) -> Requests:
    part = requests.part((requests.arrival_s >= begin_s) & (requests.arrival_s < end_s))
    return replace(part, arrival_s=part.arrival_s - begin_s)


def optimum(world: World, requests: Requests, *, seed: int, spot: bool, day: int) -> Optimum:
    return lower_bound(
        requests,
        world.zones(seed, spot),
        PROFILE,
        SLO,
        from_s=day * DAY_S if day else 3600.0,
        until_s=(day + 1) * DAY_S,
    )


def clairvoyant(world: World, requests: Requests, *, seed: int, spot: bool, day: int) -> Result:
    """The cheapest run found that keeps the target by following a plan made in advance, with machines that are known to
    last: an upper bound on what the best policy could cost, as `optimum` is a lower one. Engines take by deadline."""
    begin_s = max(0.0, day * DAY_S - 3600.0)
    part = cut(requests, begin_s, (day + 1) * DAY_S)
    end_s = (day + 1) * DAY_S - begin_s
    rate = np.bincount((part.arrival_s / 60).astype(int), sum(row_work(PROFILE, part))) / 60
    known = course(
        part, PROFILE, SLO, until_s=end_s, startup_s=world.startup_s, most=int(1.3 * rate.max()) + 2
    )
    plan = in_order_plan(known, late_allowed=(1 - SLO.attainment) * len(part), tries=4)
    zones = [later(zone, begin_s) for zone in world.zones(seed, spot)]
    placement: Any = OnDemand()
    if spot:
        placement = Foresight({zone.name: zone.spot for zone in zones if zone.spot is not None})
    found = []
    for headroom, spare, hold_s in itertools.product(
        (-0.1, 0.0, 0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 1.0, 2.0), (0.0, 60.0)
    ):
        scaler = Clairvoyant(plan.replicas, plan.bin_s, world.startup_s, headroom, spare, hold_s)
        found.append(
            simulate(
                [part], zones, PROFILE, Both(scaler, placement),
                slo=SLO, seed=seed, until_s=end_s,
                options=Options(measure_from_s=3600.0, notice_s=world.notice_s),
            )
        )  # fmt: skip
    return min(found, key=lambda r: (max(0.0, SLO.attainment - r.attainment), r.cost_usd))


def later(zone: Zone, begin_s: float) -> Zone:
    """The same zone on a clock that begins then."""
    if zone.spot is None:
        return zone
    return replace(zone, spot=replace(zone.spot, offset_s=zone.spot.offset_s + begin_s))


# -- the table


def facts(result: Result) -> dict[str, float]:
    return {
        "cost_usd": round(result.cost_usd, 2),
        "machine_hours": round(sum(result.machine_hours.values()), 3),
        "attainment": round(result.attainment, 5),
        "availability": round(result.availability, 6),
        "ttft_p99_s": round(result.ttft.p99_s, 3),
        "preemptions": result.preemptions,
        "refusals": result.refusals,
        "stall_max_s": round(result.stall_max_s, 2),
    }


def measure(
    world: World,
    chosen: dict[str, dict[str, Any]],
    seeds: Iterable[int],
    plans: int,
    log: Callable[[str], None],
) -> Any:
    """`plans`: for so many of the seeds the clairvoyant plan is made and run (minutes each)."""
    every = candidates(world.factor)
    table: dict[str, list[dict[str, Any]]] = {
        name: [] for name in [*chosen, "static", "bound", "bound-spot", "clairvoyant", "clairvoyant-spot"]
    }
    for seed in seeds:
        requests = world.requests(seed)
        for name, params in chosen.items():
            c = every[name]
            found = facts(run(c, params, world, requests, seed=seed, day=1))
            table[name].append(found)
            log(f"  seed {seed} {name} {found}")
        count, result = static_peak(world, requests, seed=seed, day=1)
        table["static"].append({"replicas": count, **facts(result)})
        for name, spot in (("bound", False), ("bound-spot", True)):
            best = optimum(world, requests, seed=seed, spot=spot, day=1)
            table[name].append({"cost_usd": round(best.cost_usd, 2), "machine_hours": round(best.hours, 3)})
        for name, spot in (("clairvoyant", False), ("clairvoyant-spot", True)):
            if len(table[name]) < plans:
                table[name].append(facts(clairvoyant(world, requests, seed=seed, spot=spot, day=1)))
                log(f"  seed {seed} {name} {table[name][-1]}")
        log(f"  seed {seed} {[(n, table[n][-1]) for n in ('static', 'bound', 'bound-spot')]}")
    return table


def means(table: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for name, rows in table.items()
        if rows
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--spot", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/elasticity.json"))
    parser.add_argument("--trace", default=World.trace)
    parser.add_argument("--factor", type=float, default=World.factor)
    parser.add_argument("--per-zone", type=int, default=World.per_zone)
    parser.add_argument("--startup", type=float, default=World.startup_s)
    parser.add_argument("--jitter", type=float, default=World.jitter_s)
    parser.add_argument("--inverted", action="store_true", help="read the spot traces the other way round")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--plans", type=int, default=1, help="seeds with a clairvoyant plan that is run")
    parser.add_argument("--runs", type=int, default=50, help="simulations to tune each candidate")
    parser.add_argument("--only", default="", help="names of candidates, by commas")
    parser.add_argument(
        "--params", type=Path, help="a result whose tuned parameters are taken instead of tuning"
    )
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    world = World(
        args.data, args.spot, args.trace, args.factor, args.jitter, args.startup, args.per_zone, inverted=args.inverted
    )  # fmt: skip
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    every = candidates(world.factor)
    names = args.only.split(",") if args.only else list(every)
    chosen: dict[str, dict[str, Any]] = json.loads(args.params.read_text())["params"] if args.params else {}
    new = [name for name in names if name not in chosen]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    requests = world.requests(0) if new else None
    for name in new:
        assert requests is not None
        chosen[name] = tune(every[name], world, requests, runs=args.runs, log=log)
        log(f"{name}: {chosen[name]}")
        args.out.with_suffix(".params.json").write_text(json.dumps({"params": chosen}, indent=1) + "\n")
    del requests
    table = measure(
        world,
        {n: chosen[n] for n in names},
        range(args.first_seed, args.first_seed + args.seeds),
        args.plans,
        log,
    )
    mean = means(table)
    out = {
        **about(), "trace": args.trace, "factor": args.factor, "jitter_s": args.jitter, "startup_s": args.startup,
        "per_zone": args.per_zone, "inverted": args.inverted, "ttft_s": SLO.ttft_s, "profile": PROFILE.name,
        "hourly_usd": HOURLY, "saving": SAVING, "params": chosen, "mean": mean, "seeds": table,
    }  # fmt: skip
    args.out.write_text(json.dumps(out, indent=1) + "\n")
    for name, row in mean.items():
        cost, hours = row["cost_usd"], row["machine_hours"]
        print(f"{name:20} {cost:10.0f} USD {hours:9.1f} h {row.get('attainment', 1):.4f}")


if __name__ == "__main__":
    main()
