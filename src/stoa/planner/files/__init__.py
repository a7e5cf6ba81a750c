"""Plain files into a `Problem`: docs/planner-input.md.

read.py        puts together what the others read
document.py    what may stand in plan.toml or plan.yaml; decode.py reads it
units.py       quantities with units, money
clock.py       typical days on the local clock
sites.py       places, machines; offers.py: at what prices; apis.py: hosted models
arrivals.py    requests of a trace or of usage records; table.py: demand as a table
demand.py      requests into buckets           asking.py    services, origins
residency.py   groups of projects by rules     network.py   latency, traffic
late.py        requests that are hopeless      throughput.py  what replicas can do
safety.py      margins, dear days, scenarios   peaks.py     how uneven demand is
replay.py      a trace, to try a plan on
"""

from __future__ import annotations

from stoa.planner.files.read import Inputs, read_inputs, read_problem

__all__ = ["Inputs", "read_inputs", "read_problem"]
