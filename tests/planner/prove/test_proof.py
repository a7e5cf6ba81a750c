"""A plan, replayed: who goes where, which machines run when, what is promised and what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.files import read_inputs
from stoa.planner.files.replay import Replay, read_replay
from stoa.planner.plan import Pool
from stoa.planner.problem import Offer, Place, Problem
from stoa.planner.program import solve
from stoa.planner.prove import prove, tune
from stoa.planner.prove.split import split
from stoa.simulator import SpotTrace

PROFILE = Profile(
    name="box", fixed_s=0.05, prompt_row_s=1e-5, decode_row_s=2e-4, context_token_s=1e-8, max_num_seqs=6,
    max_batch_tokens=2048, kv_tokens=200_000,
)  # fmt: skip
DOCUMENT = """
[periods]
kind = "day"
step = 12
horizon = "1 d"

[[machine]]
name = "box"
accelerator = "L4"

[[place]]
name = "home"
kind = "owned"
power_price = "0.2 USD/kWh"
machine = [{ type = "box", count = 1 }]

[[place]]
name = "cloud"
kind = "cloud"
machine = [{ type = "box", on_demand = "1 USD/h" }]
buy = ["on_demand"]

[[model]]
name = "m"

[[throughput]]
model = "m"
machines = ["box"]
profile = "profile.json"

[[service]]
name = "chat"
models = ["m"]
ttft = "1 s"
tpot = "100 ms"

[[rule]]
name = "at home"
projects = ["private"]
only = ["home"]

[safety]
margin = 1.8

[demand]
trace = "trace.csv"
until = "1 d"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of two projects: little by night, much by day."""
    path = tmp_path_factory.mktemp("plan")
    (path / "plan.toml").write_text(DOCUMENT)
    (path / "profile.json").write_bytes(msgspec.json.encode(PROFILE))
    rng = np.random.default_rng(1)
    night, day = rng.uniform(0, 43_200, 20_000), rng.uniform(43_200, 86_400, 120_000)
    arrival = np.sort(np.concatenate([night, day]))
    lines = ["arrival_s,prompt_tokens,output_tokens,project"]
    for at in arrival:
        project = "private" if rng.random() < 0.1 else "other"
        lines.append(f"{at:.3f},{rng.integers(200, 400)},{rng.integers(60, 120)},{project}")
    (path / "trace.csv").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def problem(folder: Path) -> Problem:
    return read_inputs(folder / "plan.toml").problem


@pytest.fixture(scope="module")
def replay(folder: Path, problem: Problem) -> Replay:
    return read_replay(folder / "plan.toml", folder / "trace.csv", problem, until="1 d")


def test_requests_go_where_the_plan_sends_them(problem: Problem, replay: Replay) -> None:
    """Shares are kept to a percent in each period, and restricted projects are only served where they may be."""
    plan = solve(problem)
    parted = split(plan, problem, replay)
    bucket = np.asarray(replay.requests.project)
    private = {k for k in range(len(problem.buckets)) if not _free(problem, k)}
    assert private
    for number, target in enumerate(parted.targets):
        assert isinstance(target, Pool)
        if target.place != "home":
            assert not private & set(bucket[parted.target == number].tolist())
    period = replay.period_at(replay.requests.arrival_s)
    for route in plan.routes:
        for t, share in enumerate(route.shares):
            mine = (bucket == route.bucket) & (period == t)
            if mine.sum() > 2000:
                got = np.mean(parted.target[mine] == parted.targets.index(route.target))
                assert got == pytest.approx(share, abs=0.01)


def _free(problem: Problem, k: int) -> bool:
    group = next(g for g in problem.groups if g.name == problem.buckets[k].group)
    return len(group.places) == len(problem.places)


def test_a_proof_keeps_cost_and_promise(problem: Problem, replay: Replay) -> None:
    """Steady demand with room to spare costs what was promised, and nearly every first token comes in time."""
    proof = prove(solve(problem), problem, replay)
    (service,) = proof.services
    assert service.first >= 0.99
    assert service.pace >= 0.99
    assert abs(proof.cost_error) < 0.05
    assert proof.requests == int((replay.requests.arrival_s >= 900.0).sum())


def test_too_few_machines_are_found_out(problem: Problem, replay: Replay) -> None:
    """With half of the machines by day the same requests come late, in the periods in which they do."""
    plan = solve(problem)
    fewer = replace(
        plan,
        rented=tuple(replace(r, counts=(r.counts[0], math.ceil(r.counts[1] * 0.4))) for r in plan.rented),
    )
    proof = prove(fewer, problem, replay)
    assert proof.shortfall > 0.03
    assert proof.late[1] > 0.04 > proof.late[0]


def test_a_broken_pace_is_a_broken_promise(problem: Problem, replay: Replay) -> None:
    """Both targets count: first tokens that are in time do not make up for answers that crawl."""
    hurried = replace(problem, services=tuple(replace(s, tpot_s=0.0505) for s in problem.services))
    proof = prove(solve(problem), hurried, replay)
    (service,) = proof.services
    assert service.first > 0.95
    assert service.kept <= min(service.first, service.pace) < 0.5
    assert not proof.kept


def test_lost_spot_machines_are_missed(problem: Problem, replay: Replay) -> None:
    """A plan on spot machines keeps its promise while they are there, and not on a trace in which there are none."""
    offers = tuple(
        replace(o, purchase="spot", hourly_usd=0.3) if o.purchase == "on_demand" else o
        for o in problem.offers
    )
    on_spot = replace(problem, offers=offers)
    plan = solve(on_spot)
    there = SpotTrace(600.0, np.full(144, 50, np.int64))
    gone = SpotTrace(600.0, np.array([50] * 100 + [0] * 44, np.int64))
    assert prove(plan, on_spot, replay, spot={"cloud": there}).shortfall <= 0.005
    assert prove(plan, on_spot, replay, spot={"cloud": gone}).shortfall > 0.05


def test_what_survives_a_loss_goes_where_the_plan_says(problem: Problem, replay: Replay) -> None:
    """A plan that can do without its spot machines keeps its promise while they are gone, and uses them while they are
    there; requests that must stay at home are there in both cases."""
    ready = replace(
        problem,
        places=(*problem.places, Place("market")),
        offers=(*problem.offers, Offer("market", "box", "spot", 0.3)),
        groups=tuple(
            replace(g, places=g.places | {"market"}) if len(g.places) > 1 else g for g in problem.groups
        ),
        rules=replace(problem.rules, survive_spot=True, strain=1.5, margin=(2.7, 2.7)),
    )
    plan = solve(ready)
    assert any(r.purchase == "spot" and any(r.counts) for r in plan.rented)
    gone = SpotTrace(600.0, np.array([50] * 100 + [0] * 44, np.int64))
    assert prove(plan, ready, replay, spot={"market": gone}).shortfall <= 0.005
    lost_s = 100 * 600.0
    late = replay.requests.arrival_s >= lost_s
    parted = split(plan, ready, replay, {"market": np.where(late, 0.0, 1.0)})
    bucket = np.asarray(replay.requests.project)
    for world, mine in (("as forecast", ~late), ("without spot at market", late)):
        for route in (r for r in plan.routes if r.world == world):
            chosen = mine & (bucket == route.bucket) & (replay.period_at(replay.requests.arrival_s) == 1)
            if chosen.sum() > 2000:
                got = np.mean(parted.target[chosen] == parted.targets.index(route.target))
                assert got == pytest.approx(route.shares[1], abs=0.01)


def test_spot_traces_of_places_that_sell_none_are_refused(problem: Problem, replay: Replay) -> None:
    """A misspelt place would be taken for one where machines come and go by chance."""
    with pytest.raises(ConfigError, match="no spot machines at 'clod'; accepted: none"):
        prove(solve(problem), problem, replay, spot={"clod": SpotTrace(600.0, np.array([1]))})


def test_tuning_finds_margins_that_keep_the_promise(problem: Problem, replay: Replay) -> None:
    """Begun without margins, it ends with some, with a plan that is checked on the trace that it learned from."""
    bare = replace(problem, rules=replace(problem.rules, margin=()))
    _, plan, proof = tune(bare, replay, lambda p: solve(p, gap=0.005))
    assert proof.shortfall == 0
    assert plan.costs.total >= solve(bare).costs.total * 0.99


def test_requests_of_unknown_groups_are_refused(folder: Path, problem: Problem) -> None:
    """A trace with a group that the plan has no demand of is an error that names it."""
    others = replace(problem, buckets=tuple(b for k, b in enumerate(problem.buckets) if _free(problem, k)))
    with pytest.raises(ConfigError, match="are not in the plan's demand"):
        read_replay(folder / "plan.toml", folder / "trace.csv", others)
