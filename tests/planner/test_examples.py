"""The worked examples under examples/plan: what their README claims."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from stoa.planner.files import Inputs, read_inputs
from stoa.planner.files.replay import read_replay
from stoa.planner.plan import Plan, Pool
from stoa.planner.program import solve
from stoa.planner.prove import prove
from stoa.planner.verify import verify
from tests.planner.prices.shared import DATA, needs_data

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
NAMES = ("company", "saas", "lab")


@cache
def planned(name: str) -> tuple[Inputs, Plan]:
    inputs = read_inputs(EXAMPLES / name / "plan.toml")
    return inputs, solve(inputs.problem, gap=0.01)


def places(name: str, *, group: str = "", service: str = "", world: str | None = None) -> set[str]:
    """Where requests of a group or service go, in every world or in one."""
    inputs, plan = planned(name)
    problem = inputs.problem
    api_places = {a.name: a.place for a in problem.apis}
    found = set()
    for route in plan.routes:
        bucket = problem.buckets[route.bucket]
        if group in ("", bucket.group) and service in ("", bucket.service) and world in (None, route.world):
            found.add(route.target.place if isinstance(route.target, Pool) else api_places[route.target])
    return found


def machines(name: str) -> Iterator[int]:
    """How many run, by period."""
    inputs, plan = planned(name)
    for period in range(len(inputs.problem.periods)):
        yield sum(count for _, _, count in plan.machines(period))


def hours(name: str, purchase: str) -> float:
    inputs, plan = planned(name)
    each = [p.hours * p.times for p in inputs.problem.periods]
    return sum(
        n * h for r in plan.rented if r.purchase == purchase for n, h in zip(r.counts, each, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_within_a_percent_of_the_cheapest(name: str) -> None:
    """And arithmetic that knows no solver agrees with it."""
    inputs, plan = planned(name)
    verify(plan, inputs.problem)
    assert plan.gap <= 0.01


class TestCompany:
    """Two GPUs of its own, a cloud, a hosted model."""

    def test_what_is_restricted_stays(self) -> None:
        """The staff's requests at home, customers' in Europe, in any case."""
        assert places("company", group="staff") == {"cellar"}
        assert places("company", group="customers") <= {"cellar", "eemshaven"}
        assert {g.name: g.places for g in planned("company")[0].problem.groups}["staff"] == {"cellar"}

    def test_owned_machines_run_always_and_a_hosted_model_takes_the_rest(self) -> None:
        """A handful of machines, and less than half of all requests by the token."""
        inputs, plan = planned("company")
        (owned,) = [r for r in plan.rented if r.purchase == "owned"]
        assert set(owned.counts) == {2}
        assert max(machines("company")) <= 6
        assert "deepinfra" in places("company", group="default")
        assert 0 < plan.costs.api < plan.costs.total / 2
        assert inputs.problem.offers[0].why == "0.6 kW of power at 0.302 USD a kWh"


class TestSaas:
    """Two regions, reserved, on demand and spot."""

    def test_european_tenants_stay_in_europe(self) -> None:
        """Also when spot machines are lost; others may be served on both sides."""
        assert places("saas", group="european tenants") == {"eemshaven"}
        assert places("saas", group="default") == {"eemshaven", "virginia"}

    def test_the_loss_of_spot_machines_is_survived(self) -> None:
        """There are plans for both regions' losses, and spot machines to lose, beside reserved ones."""
        _, plan = planned("saas")
        assert {r.world for r in plan.routes} >= {"without spot at virginia", "without spot at eemshaven"}
        assert hours("saas", "spot") > 0
        assert hours("saas", "reserved") > hours("saas", "on_demand")

    def test_it_is_tens_of_machines_with_measured_speed(self) -> None:
        """Fitted to a table."""
        inputs, _ = planned("saas")
        assert min(machines("saas")) >= 10
        assert max(machines("saas")) <= 100
        assert {f.source for f in inputs.problem.fits} == {"table"}


class TestLab:
    """Spot machines, a budget, requests that may wait."""

    def test_it_stays_within_its_budget(self) -> None:
        """In a plan that is ready for a deadline."""
        inputs, plan = planned("lab")
        assert inputs.problem.rules.budget_usd is not None
        assert plan.costs.total <= inputs.problem.rules.budget_usd
        assert {s.name for s in inputs.problem.scenarios} == {"an ordinary week", "before a deadline"}

    def test_most_machines_are_spot_and_people_do_not_depend_on_them(self) -> None:
        """Experiments do: nothing is kept for them after a loss."""
        inputs, plan = planned("lab")
        assert hours("lab", "spot") > hours("lab", "on_demand")
        lost = {r.world for r in plan.routes if r.world.startswith("without")}
        assert lost == {"without spot at iowa", "without spot at virginia"}
        served = {inputs.problem.buckets[r.bucket].service for r in plan.routes if r.world in lost}
        assert served == {"people"}

    def test_experiments_have_machines_of_their_own(self) -> None:
        """At a pace that people do not accept."""
        _, plan = planned("lab")
        assert {r.pool.pace for r in plan.rented} == {"people", "sweeps"}


class TestRealData:
    """The originals of the examples' files."""

    pytestmark = needs_data

    @pytest.mark.parametrize("name", NAMES)
    def test_files_are_what_the_script_writes(self, tmp_path: Path, name: str) -> None:
        """Nobody has edited them, nor the data."""
        inputs = script()
        (example,) = [e for e in inputs.EXAMPLES if e.name == name]
        shutil.copy(EXAMPLES / name / "plan.toml", tmp_path)
        inputs.write_all(example, DATA, tmp_path)
        for path in sorted(tmp_path.iterdir()):
            assert path.read_text() == (EXAMPLES / name / path.name).read_text(), path.name

    @pytest.mark.parametrize("name", NAMES)
    def test_margins_are_what_the_first_day_asks_for(self, tmp_path: Path, name: str) -> None:
        """To a few hundredths: where copies of requests fall is drawn."""
        inputs = script()
        (example,) = [e for e in inputs.EXAMPLES if e.name == name]
        folder = shutil.copytree(EXAMPLES / name, tmp_path / name)
        found = inputs.margins(folder / "plan.toml", DATA / example.trace)
        assert planned(name)[0].problem.rules.margin == pytest.approx(tuple(found.values()), abs=0.05)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_promises_are_kept_on_a_day_that_was_not_seen(self, name: str) -> None:
        """The second of the trace."""
        (example,) = [e for e in script().EXAMPLES if e.name == name]
        inputs, plan = planned(name)
        replay = read_replay(EXAMPLES / name / "plan.toml", DATA / example.trace, inputs.problem, begin="1 d")
        assert prove(plan, inputs.problem, replay).shortfall <= 0.005


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_inputs", EXAMPLES / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
