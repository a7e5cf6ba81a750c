"""SkyPilot (`sky serve up`): a service for each model and kind of machine over all clouds, and one for each own place.

SkyServe chooses among `any_of` by price, so where exactly its replicas are is up to it; how many there are, how many of them
at least on demand, and what a replica is expected to take are the plan's. It wants all resources to be spot or none: where
the plan has spot machines, others are the on-demand replicas beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import Any

from stoa.planner.export.needs import PORT, Need, as_yaml, needs, rate_per_replica, total
from stoa.planner.livefacts import LiveFacts
from stoa.planner.names import Names, joined
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem

_START_S = 1200  # a machine, its image, and the model's weights


def export(plan: Plan, problem: Problem, facts: LiveFacts) -> dict[str, str]:
    found = needs(plan, problem, facts)
    names = Names.of(problem)
    files = {}
    for model, machine in dict.fromkeys(n.fleet for n in found):
        mine = [n for n in found if n.fleet == (model, machine)]
        slug = joined(names.model[model], names.machine[machine])
        clouds = [n for n in mine if n.site.provider]
        if clouds:
            files[f"skypilot-{slug}.yaml"] = _text(slug, clouds, plan, problem, facts)
        for place in dict.fromkeys(n.pool.place for n in mine if not n.site.provider):
            own = [n for n in mine if n.pool.place == place]
            name = joined(slug, names.place[place])
            files[f"skypilot-{name}.yaml"] = _text(name, own, plan, problem, facts, pool=names.place[place])
    return files


def _text(
    name: str, some: Sequence[Need], plan: Plan, problem: Problem, facts: LiveFacts, *, pool: str = ""
) -> str:
    """`pool`: of machines of one's own, as `sky ssh up` knows them."""
    model = some[0].pool.model
    where = f"Wants a pool {pool} of `sky ssh up`.\n" if pool else ""
    return as_yaml(
        f"sky serve up -n stoa-{name} skypilot-{name}.yaml --secret STOA_API_KEY\n{where}"
        "A gateway names its endpoint as a [[remote]] of dialect stoa.",
        {
            "name": f"stoa-{name}",
            "service": {
                "readiness_probe": {"path": "/ready", "initial_delay_seconds": _START_S},
                "replica_policy": _policy(some, plan, problem),
            },
            "resources": {"ports": PORT, "use_spot": _is_spot(some), "any_of": _choices(some, pool)},
            "envs": {"STOA_HOST": "0.0.0.0", "STOA_PORT": str(PORT), "STOA_MODEL": facts.source(model)},
            "secrets": {"STOA_API_KEY": None},
            "setup": "pip install stoa\n",
            "run": f"stoa serve --served-model-name {quote(model)}\n",
        },
    )


def _is_spot(some: Sequence[Need]) -> bool:
    return any(n.market == "spot" for n in some)


def _policy(some: Sequence[Need], plan: Plan, problem: Problem) -> dict[str, Any]:
    least, most = total(some, plan)
    policy: dict[str, Any] = {"min_replicas": least, "max_replicas": most}
    if most > least:  # it scales by requests; else it would not take two different numbers
        rate = rate_per_replica(some, plan, problem)
        policy["target_qps_per_replica"] = max(0.001, round(rate, 3))
    if _is_spot(some):
        lasting = [n for n in some if n.market != "spot"]
        policy["base_ondemand_fallback_replicas"] = total(lasting, plan)[0] if lasting else 0
        policy["dynamic_ondemand_fallback"] = True
    return policy


def _choices(some: Sequence[Need], pool: str) -> list[dict[str, Any]]:
    found = []
    for need in some:
        site = need.site
        infra = f"ssh/{pool}" if pool else "/".join(filter(None, (site.provider, site.region, site.zone)))
        choice: dict[str, Any] = {
            "infra": infra,
            "accelerators": {need.machine.accelerator: need.machine.accelerators},
        }
        if not pool:
            choice["instance_type"] = need.pool.machine
        if choice not in found:
            found.append(choice)
    return found
