"""A proof, for people and for programs."""

from __future__ import annotations

from typing import Any

from stoa.planner.prove.proof import Proof, ServiceProof, Spent

_MISSED = 0.005


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
    if proof.shortfall > _MISSED:
        lines.append(
            "The plan does not keep its promise on these requests. `--tune`, or more `safety`, buys more room."
        )
    return "\n".join(lines)


def _cost(usd: float, promised_usd: float) -> str:
    error = f" ({usd / promised_usd - 1:+.1%})" if promised_usd > 0 else ""
    return f"{usd:,.2f} USD, {promised_usd:,.2f} promised{error}"


def _service(s: ServiceProof) -> str:
    kept = "kept" if s.promised - s.first <= _MISSED else "MISSED"
    return (
        f"{s.service:<9} first token in time for {s.first:.2%} of {s.requests:,} requests, {s.promised:.1%} promised: "
        f"{kept}; 99 % within {s.ttft_p99_s:.2f} s; pace in time for {s.pace:.2%}"
    )


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
                "service": s.service, "requests": s.requests, "promised": s.promised, "first_in_time": s.first,
                "pace_in_time": s.pace, "ttft_p99_s": s.ttft_p99_s,
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
