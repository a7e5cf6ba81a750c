"""A proof, for people and for programs."""

from __future__ import annotations

import math
from typing import Any

from stoa.planner.prove.proof import MISSED, Proof, ServiceProof, Spent


def tell_proof(proof: Proof) -> str:
    """What was promised, and what came of it, in lines."""
    lines = [
        f"Tried on {proof.requests:,} requests of {proof.hours:.1f} hours:",
        f"  cost      {_cost(proof.spent.total, proof.promised.total)}",
    ]
    if proof.promised.by_request > 0:
        lines.append(f"  machines  {_cost(proof.spent.machines, proof.promised.machines)}")
        lines.append(
            f"  by usage  {_cost(proof.spent.by_request, proof.promised.by_request)}: this follows who asks"
        )
    lines += [f"  {_service(s)}" for s in proof.services]
    if not proof.kept:
        lines.append(
            "The plan does not keep its promise on these requests. `--tune`, or more `safety`, buys more room."
        )
    return "\n".join(lines)


def _cost(usd: float, promised_usd: float) -> str:
    error = f" ({usd / promised_usd - 1:+.1%})" if promised_usd > 0 else ""
    return f"{usd:,.2f} USD, {promised_usd:,.2f} promised{error}"


def _service(s: ServiceProof) -> str:
    short = s.promised - s.kept
    kept = "kept" if short <= 0 else "nearly kept" if short <= MISSED else "MISSED"
    return (
        f"{s.service:<9} {s.kept:.2%} of {s.requests:,} requests in time, {s.promised:.1%} promised: {kept} "
        f"(first token {s.first:.2%}, pace {s.pace:.2%}; first tokens: half within {_within(s.ttft_p50_s)}, 99 % within "
        f"{_within(s.ttft_p99_s)})"
    )


def _within(seconds: float) -> str:
    """Who is never answered waits until the trial's end."""
    return f"{seconds:.2f} s" if seconds < math.inf else "no time at all"


def _spent_json(spent: Spent) -> dict[str, float]:
    return {"machines": spent.machines, "by_request": spent.by_request, "total": spent.total}


def proof_json(proof: Proof) -> dict[str, Any]:
    return {
        "hours": proof.hours,
        "requests": proof.requests,
        "promised_usd": _spent_json(proof.promised),
        "usd": _spent_json(proof.spent),
        "cost_error": proof.cost_error,
        "services": [
            {
                "service": s.service, "requests": s.requests, "promised": s.promised, "kept": s.kept,
                "first_in_time": s.first, "pace_in_time": s.pace, "ttft_p50_s": s.ttft_p50_s, "ttft_p99_s": s.ttft_p99_s,
            }
            for s in proof.services
        ],
        "pools": [
            {
                "place": p.pool.place, "machine": p.pool.machine, "model": p.pool.model, "pace": p.pool.pace,
                "requests": p.requests, "usd": p.usd, "machine_hours": p.machine_hours, "preemptions": p.preemptions,
            }
            for p in proof.pools
        ],
    }  # fmt: skip
