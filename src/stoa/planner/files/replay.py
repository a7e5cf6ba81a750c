"""A trace as a plan sees it: which bucket each request belongs to, and which period its time is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stoa.errors import ConfigError
from stoa.planner.files import units
from stoa.planner.files.arrivals import Arrivals, Labels, is_usage, read_trace, read_usage
from stoa.planner.files.asking import kinds
from stoa.planner.files.clock import Quarters, assumed_start, quarters, read_clock, read_zone
from stoa.planner.files.decode import read_document
from stoa.planner.files.demand import Kind, kinds_of
from stoa.planner.files.residency import read_residency
from stoa.planner.problem import Bucket, Problem
from stoa.programs import Floats, Places
from stoa.simulator import scale_rate
from stoa.simulator.traces import Requests, join


@dataclass(frozen=True, slots=True)
class Replay:
    """`requests.project` is the number of the request's bucket. It begins at the trace's second `begin_s`."""

    requests: Requests
    length_s: float
    quarters: Quarters
    begin_s: float

    def period_at(self, at_s: Floats) -> Places:
        """Number of the period that each second of the replay is in."""
        return self.quarters.period_of(np.asarray(at_s) + self.begin_s)


def read_replay(
    document_path: Path,
    trace: Path,
    problem: Problem,
    *,
    begin: str | None = None,
    until: str | None = None,
    seed: int = 0,
) -> Replay:
    """Requests of the trace (or of Stoa's export of usage), scaled as the document scales its demand. ConfigError for
    requests that the plan knows nothing of."""
    document = read_document(document_path)
    clock = read_clock(document.periods, document.time_zone)
    zone = read_zone(document.demand.time_zone, "demand.time_zone")
    arrivals = read_usage(trace) if is_usage(trace) else read_trace(trace, zone, sort=document.demand.sort)
    begin_s = 0.0 if begin is None else units.seconds(begin, "from")
    end_s = float(arrivals.arrival_s[-1]) + 1e-6 if until is None else units.seconds(until, "until")
    arrivals = arrivals.part(slice(*np.searchsorted(arrivals.arrival_s, [begin_s, end_s])))
    if not len(arrivals):
        raise ConfigError(
            f"{trace.name} has no requests between {begin_s:g} s and {end_s:g} s", param="trace"
        )
    residency = read_residency(document.rule, arrivals.project.names, problem.places)
    found, kind = kinds_of(arrivals, kinds(document, residency))
    bucket = _nearest(arrivals, found, kind, problem.buckets)
    requests = Requests(
        arrivals.arrival_s - begin_s, arrivals.prompt_tokens, arrivals.output_tokens, bucket.astype(np.int32)
    )
    scaled = join(scale_rate([requests], document.demand.scale, seed=seed))
    parts = quarters(clock, arrivals.start or assumed_start(clock), begin_s, end_s)
    return Replay(scaled, end_s - begin_s, parts, begin_s)


def _name(labels: Labels, request: int) -> str:
    return labels.name(int(labels.codes[request]))


def _nearest(arrivals: Arrivals, found: Sequence[Kind], kind: Places, buckets: Sequence[Bucket]) -> Places:
    """The bucket of its kind that is most like a request: by the ratios of their tokens."""
    bucket = np.full(len(kind), -1, np.int64)
    sizes = np.log1p([(b.prompt_tokens, b.output_tokens) for b in buckets])
    for number, who in enumerate(found):
        mine = [k for k, b in enumerate(buckets) if (b.service, b.group, b.origin) == tuple(who)]
        those = np.flatnonzero(kind == number)
        if not mine:
            raise ConfigError(
                f"{len(those)} requests of service {who.service}, group {who.group}"
                + (f" from {who.origin}" if who.origin else "")
                + f" (project {_name(arrivals.project, those[0])!r}) are not in the plan's demand; "
                "accepted: a trace of what was planned for, or that project in the demand",
                param="trace",
            )
        tokens = np.log1p(np.stack([arrivals.prompt_tokens[those], arrivals.output_tokens[those]], axis=1))
        far = np.abs(tokens[:, None, :] - sizes[mine][None, :, :]).sum(axis=2)
        bucket[those] = np.array(mine)[np.argmin(far, axis=1)]
    return bucket
