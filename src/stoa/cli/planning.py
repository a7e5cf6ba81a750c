"""What `stoa plan` does: read, plan, try, write, say."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stoa.cli.administration import on_database
from stoa.cli.outputs import check_outputs, make_folder
from stoa.errors import ConfigError, InvalidTrace, StoaError
from stoa.versioned import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from stoa.planner.files import Inputs
    from stoa.planner.plan import Plan
    from stoa.planner.problem import Problem
    from stoa.planner.prove import Proof
    from stoa.simulator import SpotTrace
    from stoa.storage.database import Database


@dataclass(kw_only=True)
class Job:
    """The command's options, and what is done with them."""

    document: Path
    gap: float
    time_limit_s: float
    quick: bool
    tune: Path | None
    tune_from: str | None
    tune_until: str | None
    verify: Path | None
    begin: str | None
    until: str | None
    spot: Sequence[str] | None
    spot_scale: int
    startup_s: float
    seed: int
    old: Path | None
    least_saving: float
    out: Path | None
    chart: Path | None
    apply: Path | None
    export: str | None
    to: Path
    usage: str | None
    home: str | None
    db: str | None
    as_json: bool

    def again(self, every: str) -> None:
        from stoa.planner.files import units

        pause_s = units.seconds(every, "every")
        if self.out is None:
            raise ConfigError("--every needs --out: the plan is read from there the next time", param="out")
        while True:
            self.old = self.out if self.out.exists() else self.old
            try:
                self.once()
            except StoaError as error:
                print(f"stoa: {error.message}; the old plan stays", file=sys.stderr, flush=True)
            except Exception:  # the next time may find other files
                traceback.print_exc()
            time.sleep(pause_s)

    def once(self) -> bool:
        """False if a trial showed that the plan does not keep its promises."""
        check_outputs(out=self.out, chart=self.chart, apply=self.apply)
        if self.export is not None:
            make_folder(to=self.to)
        if self.chart is not None and self.chart.suffix != ".svg":
            raise ConfigError(f"--chart {self.chart}: accepted: a file named .svg", param="chart")
        inputs = self._inputs()
        self._check_sites(inputs)
        problem, made, diff = self._made(inputs)
        proof = self._proof(made, problem) if self.verify is not None else None
        self._write(made, inputs, problem)
        self._print(made, problem, inputs, diff, proof)
        return proof is None or proof.kept

    def _inputs(self) -> Inputs:
        from stoa.planner.files import read_inputs

        if self.usage is None:
            return read_inputs(self.document)
        with _exported(self.usage, self.home, self.db) as path:
            try:
                return read_inputs(self.document, usage=path)
            except InvalidTrace as error:
                told = error.message.removeprefix(f"{path}: ")
                raise ConfigError(
                    f"this server's records of the last {self.usage}: {told}", param="usage"
                ) from None

    def _check_sites(self, inputs: Inputs) -> None:
        """Before a search whose plan could not be written."""
        if self.apply is not None or self.export is not None:
            from stoa.planner.apply import check_sites
            from stoa.planner.livefacts import live_facts

            check_sites(inputs.problem, live_facts(inputs.problem, inputs.document))

    # -- the plan

    def _made(self, inputs: Inputs) -> tuple[Problem, Plan, str]:
        from stoa.planner.explain import in_words, ways_out
        from stoa.planner.program import NoPlan, Unservable

        try:
            problem, found = self._tuned(inputs) if self.tune is not None else (inputs.problem, None)
            if self.old is not None:
                return problem, *self._damped(self.old, problem)
            return problem, found or self._solve(problem), ""
        except (NoPlan, Unservable) as error:
            ways = ways_out(inputs.problem, time_limit_s=self.time_limit_s)
            raise ConfigError(f"{error.message}\n{in_words(ways)}", param="demand") from None

    def _solve(self, problem: Problem) -> Plan:
        from stoa.planner.program import sketch, solve

        return sketch(problem) if self.quick else solve(problem, gap=self.gap, time_limit_s=self.time_limit_s)

    def _tuned(self, inputs: Inputs) -> tuple[Problem, Plan]:
        from stoa.planner.files.replay import read_replay
        from stoa.planner.prove import tune

        assert self.tune is not None
        replay = read_replay(
            self.document,
            self.tune,
            inputs.problem,
            begin=self.tune_from,
            until=self.tune_until,
            seed=self.seed,
        )
        problem, found, _ = tune(
            inputs.problem, replay, self._solve, spot=self._spot(), startup_s=self.startup_s, seed=self.seed,
            log=self._log,
        )  # fmt: skip
        return problem, found

    def _damped(self, old: Path, problem: Problem) -> tuple[Plan, str]:
        from stoa.planner.replan import replan, words
        from stoa.planner.stored import onto, read_stored

        before = onto(read_stored(old), problem)
        again = replan(
            before, problem, least_saving=self.least_saving, gap=self.gap, time_limit_s=self.time_limit_s
        )
        return again.plan, words(again)

    # -- the trial

    def _proof(self, made: Plan, problem: Problem) -> Proof:
        from stoa.planner.files.replay import read_replay
        from stoa.planner.prove import prove

        assert self.verify is not None
        replay = read_replay(
            self.document, self.verify, problem, begin=self.begin, until=self.until, seed=self.seed
        )
        return prove(made, problem, replay, spot=self._spot(), startup_s=self.startup_s, seed=self.seed)

    def _spot(self) -> dict[str, SpotTrace]:
        from stoa.simulator import read_spot

        found = {}
        for text in self.spot or ():
            place, _, file = text.partition("=")
            if not file:
                raise ConfigError(f"--spot {text!r}; accepted: PLACE=FILE", param="spot")
            found[place] = read_spot(Path(file), scale=self.spot_scale)
        return found

    # -- what is left behind

    def _write(self, made: Plan, inputs: Inputs, problem: Problem) -> None:
        """All of it is made before the first file is written."""
        from stoa.planner.livefacts import live_facts

        facts = live_facts(problem, inputs.document)
        files: dict[Path, bytes] = {}
        if self.apply is not None:
            from stoa.fleet.policies.contract import plan_json
            from stoa.planner.apply import fleet_plan

            files[self.apply] = plan_json(fleet_plan(made, problem, facts))
        if self.export is not None:
            exported = _exporter(self.export)(made, problem, facts)
            files |= {self.to / name: text.encode() for name, text in exported.items()}
        if self.chart is not None:
            from stoa.planner.chart import draw

            files[self.chart] = draw(made, problem).encode()
        if self.out is not None:
            from stoa.planner.stored import named, to_json

            files[self.out] = to_json(named(made, problem))
        for path, text in files.items():
            write_bytes(text, path)
            self._log(f"wrote {path}")
        if self.apply is not None and problem.apis and problem.rules.budget_usd is None:
            hosted = ", ".join(a.name for a in problem.apis)
            self._log(
                f"nothing limits what {hosted} may cost beyond the plan: rules.budget, or daily_usd in {self.apply}"
            )

    def _print(self, made: Plan, problem: Problem, inputs: Inputs, diff: str, proof: Proof | None) -> None:
        from stoa.planner.explain import as_json, explain
        from stoa.planner.prove.words import proof_json, tell_proof

        if self.as_json:
            facts = as_json(made, problem)
            if proof is not None:
                facts["proof"] = proof_json(proof)
            if diff:
                facts["diff"] = diff
            facts["warnings"] = list(inputs.warnings)
            print(json.dumps(facts))
            return
        if diff:
            print(f"{diff}\n")
        print(explain(made, problem, inputs.notes, warnings=inputs.warnings))
        if proof is not None:
            print(tell_proof(proof))

    def _log(self, text: str) -> None:
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)


def _exporter(kind: str) -> Callable[..., dict[str, str]]:
    if kind == "kubernetes":
        from stoa.planner.export.kubernetes import export
    elif kind == "ray":
        from stoa.planner.export.ray import export
    else:
        from stoa.planner.export.skypilot import export
    return export


@contextmanager
def _exported(span: str, home: str | None, db: str | None) -> Iterator[Path]:
    """The server's own records of usage, from so long ago until now, in a file that is there as long as it is needed."""
    from stoa.economics.export import write_csv
    from stoa.planner.files import units
    from stoa.storage.scope import EVERY_PROJECT

    end_s = int(time.time()) + 1
    start_s = end_s - int(units.seconds(span, "usage"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.csv"

        async def write(database: Database) -> None:
            await write_csv(database, "usage", EVERY_PROJECT, start_s, end_s, path)

        on_database(home, db, write)
        yield path
