"""What is counted while a fleet runs: money, machine time, service, and how all of it went over time."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

from stoa.simulator import core
from stoa.simulator.market import Machine
from stoa.simulator.result import TIMELINE, Result, Times

_HOUR_S = 3600.0


class Account:
    """Counts from `measure_from_s` until it is closed."""

    def __init__(self, measure_from_s: float) -> None:
        self._from_s = measure_from_s
        self._open = True
        self._seconds: Counter[str] = Counter()  # by market
        self._usd: Counter[str] = Counter()
        self.preemptions = self.launches = self.refusals = 0
        self._served_until_s = measure_from_s
        self._ready_s = self._unserved_s = 0.0
        self._columns: dict[str, array[float]] = {name: array("d") for name in TIMELINE}

    def pay(self, machine: Machine, end_s: float) -> None:
        if not self._open:
            return
        seconds = max(0.0, end_s - max(machine.launched_s, self._from_s))
        self._seconds[machine.offer.market] += seconds  # type: ignore[assignment]
        self._usd[machine.offer.market] += seconds * machine.offer.hourly / _HOUR_S  # type: ignore[assignment]

    def serve(self, now_s: float, serving: int, waited_s: float) -> None:
        """Since the last call, `serving` replicas took requests; `waited_s`: how long somebody has waited now."""
        passed_s = now_s - self._served_until_s
        if not self._open or passed_s <= 0:
            return
        self._served_until_s = now_s
        if serving:
            self._ready_s += passed_s
        else:
            self._unserved_s += min(passed_s, waited_s)

    def tick(self, now_s: float, seen: core.Bin, machines: Iterable[Machine]) -> None:
        if not self._open:
            return
        counts = Counter((m.state, m.offer.market) for m in machines)
        hourly = sum(m.offer.hourly for m in machines)
        row = (
            now_s,
            counts["ready", "spot"], counts["ready", "on_demand"],
            counts["starting", "spot"] + counts["starting", "on_demand"],
            counts["draining", "spot"] + counts["draining", "on_demand"],
            hourly, seen.requests, seen.late, seen.in_flight, seen.held,
        )  # fmt: skip
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def close(self, now_s: float, machines: Iterable[Machine]) -> None:
        """What is still there is paid until now; nothing counts any more."""
        for machine in machines:
            self.pay(machine, now_s)
        self._open = False

    def result(self, fleet: core.Fleet, end_s: float, recorded: Any) -> Result:
        totals = fleet.totals()
        measured_s = end_s - self._from_s
        return Result(
            measured_s=measured_s,
            cost_usd=sum(self._usd.values()),
            cost={k: float(v) for k, v in sorted(self._usd.items())},
            machine_hours={k: v / _HOUR_S for k, v in sorted(self._seconds.items())},
            requests=int(totals.counted),
            attainment=totals.within / totals.counted if totals.counted else 1.0,
            unserved=int(totals.counted - totals.firsts),
            ttft=Times.of(fleet.ttft_hist, int(totals.counted), totals.firsts, totals.ttft_sum_s, totals.ttft_most_s),
            tpot=Times.of(fleet.tpot_hist, int(totals.tpots), totals.tpots, totals.tpot_sum_s),
            availability=1 - self._unserved_s / measured_s if measured_s > 0 else 1.0,
            ready_share=self._ready_s / measured_s if measured_s > 0 else 0.0,
            preemptions=self.preemptions,
            launches=self.launches,
            refusals=self.refusals,
            moved=int(totals.moved),
            kv_preempted=int(totals.kv_preempted),
            too_long=int(totals.refused),
            output_tokens=int(totals.output_tokens),
            stalls=int(totals.stalls),
            stall_mean_s=totals.stall_sum_s / totals.stalls if totals.stalls else 0.0,
            stall_max_s=totals.stall_most_s,
            adapter_hits=fleet.routing.hits if fleet.routing is not None else 0,
            adapter_loads=fleet.routing.loads if fleet.routing is not None else 0,
            timeline=dict(self._columns),
            first_s=None if recorded is None else recorded[0],
            end_s=None if recorded is None else recorded[1],
        )  # fmt: skip
