"""The same problem with few of its options: what is found there is a plan of all (a kernel search)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stoa.planner.program.period import Routes
from stoa.planner.program.relaxed import Relaxed
from stoa.planner.program.view import View
from stoa.planner.program.whole import Solved
from stoa.programs import Flags

_TAKEN = 1e-7  # machines


def nearest(relaxed: Relaxed, periods: Sequence[Solved], more: int) -> Flags:
    """[M] options that the relaxation or these periods take, and so many more that it would take soonest."""
    rows = relaxed.joint.rows
    taken = [relaxed.x[r.n] for r in rows] + [p.n for p in periods]
    keep: Flags = np.asarray(np.max(taken, axis=0) > _TAKEN)
    far = np.min([relaxed.reduced[r.n] for r in rows], axis=0)
    keep[np.argsort(np.where(keep, np.inf, far), kind="stable")[:more]] = True
    return keep


def narrow(v: View, few: View, routes: Sequence[Routes], periods: Sequence[Solved]) -> list[Solved]:
    """Periods of the whole problem, which take nothing else, in terms of the few options and their routes."""
    keep = _options(v, few)
    return [replace(p, n=p.n[keep], x=p.x[_theirs(few, r)]) for r, p in zip(routes, periods, strict=True)]


def widen(v: View, few: View, routes: Sequence[Routes], periods: Sequence[Solved]) -> list[Solved]:
    """Periods of the few options in terms of all options and routes. No bound is one of all."""
    keep, found = _options(v, few), []
    for r, period in zip(routes, periods, strict=True):
        n, x = np.zeros(len(keep)), np.zeros(len(r))
        n[keep], x[_theirs(few, r)] = period.n, period.x
        found.append(Solved(period.cost, -np.inf, n, x))
    return found


def _options(v: View, few: View) -> Flags:
    """[M]"""
    there = {(id(offer), j) for offer, j in few.options}
    return np.array([(id(offer), j) in there for offer, j in v.options], np.bool_)


def _theirs(few: View, routes: Routes) -> Flags:
    """Which of all routes there are with the few options, in the same order."""
    return np.asarray(np.isfinite(few.usd[routes.bucket, routes.target]))
