"""Sparse linear and mixed-integer programs, filled by rows and given to HiGHS."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoa.errors import ConfigError, StoaError

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


class NoOptimum(StoaError):
    """The program has no feasible solution, or the solver did not prove one optimal; the message says which."""

    status = 422
    code = "no_optimum"


class TimedOut(NoOptimum):
    """The time was over before anything could be said."""

    code = "timed_out"


# interior point is the fastest on wide programs, but does not always end
METHODS = (("ipm", "off"), ("ipm", "on"), ("simplex", "on"))


@functools.cache
def _highspy() -> Any:
    """An extra, needed by nobody who does not plan. The first solver of a process prints a notice, here to nowhere: what
    commands print is for other programs. ConfigError if it is not installed."""
    try:
        import highspy
    except ImportError:
        raise ConfigError("planning needs HiGHS: pip install 'stoa[planner]'") from None
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            highspy.Highs()  # type: ignore[no-untyped-call]
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    return highspy


@dataclass(frozen=True, slots=True)
class Solution:
    """`bound`: nothing costs less. Of linear programs, `row_dual`: what one more unit of a row's bound adds to the cost;
    `reduced`: what one more unit of a variable adds."""

    cost: float
    x: Floats
    bound: float
    row_dual: Floats
    reduced: Floats


@dataclass(slots=True)
class Program:
    """minimize cost x, subject to low <= rows x <= high and the bounds of x."""

    _cost: list[Floats] = field(default_factory=list)
    _low: list[Floats] = field(default_factory=list)
    _high: list[Floats] = field(default_factory=list)
    _entries: list[tuple[Places, Places, Floats]] = field(default_factory=list)  # rows, columns, values
    _row_low: list[Floats] = field(default_factory=list)
    _row_high: list[Floats] = field(default_factory=list)
    columns: int = 0
    rows: int = 0

    def variables(
        self, shape: tuple[int, ...], *, cost: Any = 0.0, low: Any = 0.0, high: Any = np.inf
    ) -> Places:
        """Numbers of new variables, of this shape; cost and bounds broadcast to it."""
        count = int(np.prod(shape))
        for kept, value in ((self._cost, cost), (self._low, low), (self._high, high)):
            kept.append(np.broadcast_to(np.asarray(value, np.float64), shape).ravel())
        numbers = np.arange(self.columns, self.columns + count).reshape(shape)
        self.columns += count
        return numbers

    def costs(self) -> Floats:
        """Of all variables so far."""
        return np.concatenate(self._cost)

    def bounds(self, variables: Places) -> tuple[Floats, Floats]:
        return np.concatenate(self._low)[variables], np.concatenate(self._high)[variables]

    def row(self, shape: tuple[int, ...], *, low: Any = -np.inf, high: Any = np.inf) -> Places:
        """Numbers of new rows without terms, of this shape; bounds broadcast to it."""
        count = int(np.prod(shape))
        numbers = np.arange(self.rows, self.rows + count).reshape(shape)
        self.rows += count
        self._row_low.append(np.broadcast_to(np.asarray(low, np.float64), shape).ravel())
        self._row_high.append(np.broadcast_to(np.asarray(high, np.float64), shape).ravel())
        return numbers

    def add(
        self, *terms: tuple[Places, Any], low: Any = -np.inf, high: Any = np.inf, into: Places | None = None
    ) -> Places:
        """One row for each element of the terms, which are (variables, coefficients) of one shape after broadcasting.
        `into`: these rows get the terms instead, a row perhaps several."""
        shape = np.broadcast_shapes(*(v.shape for v, _ in terms))
        numbers = self.row(shape, low=low, high=high) if into is None else into
        for variables, values in terms:
            wide = np.broadcast_to(np.asarray(values, np.float64), shape).ravel()
            places = np.broadcast_to(numbers, shape).ravel()
            self._entries.append((places, np.broadcast_to(variables, shape).ravel(), wide))
        return numbers

    def again(self) -> Again:
        """For linear programs that differ in bounds only: each is solved from where the last one ended."""
        return Again(self)

    def solve(
        self,
        *,
        integer: Places | None = None,
        gap: float = 0.0,
        time_limit_s: float = 600.0,
        start: Floats | None = None,
        methods: Sequence[tuple[str, str]] = METHODS,
    ) -> Solution:
        """`integer`: these are whole numbers; then `gap` is the share of the cost by which the result may be too high, and
        `start` are values of all variables to begin with. `methods`: for linear programs (solver, crossover), tried in
        turn. NoOptimum if there is no solution. If none of whole numbers was found in time, the cost is infinite."""
        highspy = _highspy()
        solver: Any = highspy.Highs()
        solver.silent()
        solver.setOptionValue("time_limit", time_limit_s)
        solver.setOptionValue("threads", 1)  # of a process, the first program decides for all
        solver.setOptionValue("mip_rel_gap", gap)
        solver.passModel(self._model(highspy, integer))
        if start is not None:
            known = highspy.HighsSolution()
            known.col_value = start.tolist()
            solver.setSolution(known)
        for method, crossover in methods if integer is None else METHODS[:1]:
            solver.setOptionValue("solver", method if integer is None else "choose")
            solver.setOptionValue("run_crossover", crossover)
            solver.run()
            status = solver.getModelStatus()
            if status in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInfeasible):
                break
        info, found = solver.getInfo(), solver.getSolution()
        x = np.asarray(found.col_value, np.float64)
        timed = status == highspy.HighsModelStatus.kTimeLimit and integer is not None
        if status != highspy.HighsModelStatus.kOptimal and not timed:
            over = status == highspy.HighsModelStatus.kTimeLimit
            raise (TimedOut if over else NoOptimum)(
                f"the solver ended with: {solver.modelStatusToString(status)}"
            )
        cost = float(info.objective_function_value) if found.value_valid else np.inf
        if start is not None and cost < np.inf and abs(self.costs() @ x - cost) > 1e-6 * max(1.0, abs(cost)):
            # some solvers misread a start that their presolve has shortened
            return self.solve(integer=integer, gap=gap, time_limit_s=time_limit_s, methods=methods)
        if integer is not None:
            bound = float(info.mip_dual_bound)
            return Solution(cost, x, bound if np.isfinite(bound) else -np.inf, np.empty(0), np.empty(0))
        return Solution(cost, x, cost, np.asarray(found.row_dual), np.asarray(found.col_dual))

    def _model(self, highspy: Any, integer: Places | None) -> Any:
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        order = np.argsort(columns, kind="stable")
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self.columns, self.rows
        model.col_cost_ = np.concatenate(self._cost)
        model.col_lower_, model.col_upper_ = np.concatenate(self._low), np.concatenate(self._high)
        model.row_lower_, model.row_upper_ = np.concatenate(self._row_low), np.concatenate(self._row_high)
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.searchsorted(columns[order], np.arange(self.columns + 1)).astype(np.int32)
        model.a_matrix_.index_ = rows[order].astype(np.int32)
        model.a_matrix_.value_ = values[order]
        if integer is not None:
            kinds = np.full(self.columns, highspy.HighsVarType.kContinuous)
            kinds[integer] = highspy.HighsVarType.kInteger
            model.integrality_ = kinds.tolist()
        return model


class Again:
    """A linear program solved time and again, with other bounds of variables."""

    def __init__(self, program: Program) -> None:
        self._highspy = highspy = _highspy()
        self._solver: Any = highspy.Highs()
        self._solver.silent()
        self._solver.setOptionValue("threads", 1)
        self._solver.setOptionValue("solver", "simplex")
        self._solver.passModel(program._model(highspy, None))

    def set_bounds(self, variable: int, low: float, high: float) -> None:
        self._solver.changeColBounds(variable, low, high)

    def solve(self) -> Solution | None:
        """None if there is no solution."""
        self._solver.run()
        if self._solver.getModelStatus() != self._highspy.HighsModelStatus.kOptimal:
            return None
        found = self._solver.getSolution()
        cost = float(self._solver.getInfo().objective_function_value)
        x = np.asarray(found.col_value, np.float64)
        return Solution(cost, x, cost, np.asarray(found.row_dual), np.asarray(found.col_dual))
