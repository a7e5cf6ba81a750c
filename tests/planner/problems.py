"""Problems drawn by chance, of any size, that look like real ones."""

from __future__ import annotations

import math

import numpy as np

from stoa.planner.check import check
from stoa.planner.problem import (
    Api,
    Bucket,
    Fit,
    Group,
    MachineType,
    Offer,
    Period,
    Place,
    Problem,
    Purchase,
    Rules,
    Service,
)

# name, memory GiB, bandwidth TB/s, bf16 TFLOP/s, USD an hour on demand: accelerators as they are sold
CARDS = (
    ("T4", 16, 0.32, 65, 0.53), ("L4", 24, 0.30, 121, 0.80), ("A10G", 24, 0.60, 125, 1.21), ("V100", 16, 0.90, 125, 3.06),
    ("A40", 48, 0.70, 150, 1.28), ("L40S", 48, 0.86, 362, 1.86), ("A100-40", 40, 1.55, 312, 3.40),
    ("A100-80", 80, 2.04, 312, 4.10), ("H100", 80, 3.35, 989, 6.98), ("H200", 141, 4.80, 989, 8.20),
    ("2xA100-80", 160, 4.08, 624, 8.19), ("2xH100", 160, 6.70, 1978, 13.9),
)  # fmt: skip
SIZES = (("8b", 16.0), ("32b", 64.0), ("70b", 140.0))  # GiB of weights
ORDER: tuple[Purchase, ...] = ("on_demand", "spot", "reserved", "owned")
PLAIN = Rules()


def draw(
    seed: int,
    *,
    places: int = 3,
    cards: int = 12,
    purchases: int = 4,
    models: int = 3,
    periods: int = 24,
    buckets: int = 60,
    rate: float = 40.0,
    rules: Rules = PLAIN,
    api: bool = False,
) -> Problem:
    """`rate`: requests a second of all buckets together, on average over the day."""
    rng = np.random.default_rng(seed)
    chosen = (
        [CARDS[i] for i in sorted(rng.choice(len(CARDS), cards, replace=False))]
        if cards < len(CARDS)
        else CARDS
    )
    sites = tuple(Place(f"place-{p}", frozenset({"owned"} if p == 0 else {"cloud"})) for p in range(places))
    offers = [
        _offer(rng, site, p, card, purchase)
        for p, site in enumerate(sites)
        for card in chosen
        for purchase in ORDER[:purchases]
    ]
    services = tuple(
        Service(
            f"class-{m}", tuple(name for name, _ in SIZES[m:models]), ttft_s=(1.0, 2.0, 4.0)[m], tpot_s=0.1
        )
        for m in range(models)
    )
    groups = (Group("all", frozenset(s.name for s in sites)), Group("home", frozenset({sites[0].name})))
    shapes = [(float(rng.integers(50, 4000)), float(rng.integers(20, 800))) for _ in range(buckets)]
    day = 1 + 0.6 * np.sin(2 * math.pi * (np.arange(periods) / periods - 0.3))
    share = rng.dirichlet(np.full(buckets, 0.7)) * rate
    demand = tuple(
        Bucket(
            services[k % len(services)].name,
            "home" if k % 11 == 10 else "all",
            *shapes[k],
            rates=tuple(float(r) for r in share[k] * day * rng.uniform(0.7, 1.3, periods)),
        )
        for k in range(buckets)
    )
    fits = tuple(
        _fit(rng, card, name, size, shapes)
        for card in chosen
        for name, size in SIZES[:models]
        if size * 1.08 <= card[1] or name == "8b"
    )
    apis = (Api("hosted", sites[-1].name, SIZES[models - 1][0], 9e-7, 9e-7, 0.5, 0.02),) if api else ()
    return check(
        Problem(
            tuple(Period(f"hour {t}", 1.0, 30.0) for t in range(periods)), sites,
            tuple(MachineType(c[0], c[0], 1, c[1]) for c in chosen), tuple(offers), fits, services, groups, demand, apis,
            rules=rules,
        )
    )  # fmt: skip


def _offer(
    rng: np.random.Generator,
    site: Place,
    p: int,
    card: tuple[str, int, float, int, float],
    purchase: Purchase,
) -> Offer:
    base = card[4] * float(rng.uniform(0.85, 1.3))
    if purchase == "owned":
        return Offer(site.name, card[0], "owned", 0.05 * base, limit=int(rng.integers(0, 5)) if p == 0 else 0)
    factor = {"on_demand": 1.0, "spot": float(rng.uniform(0.3, 0.6)), "reserved": 0.62}[purchase]
    limit = int(rng.integers(2, 20)) if purchase == "spot" else None
    return Offer(site.name, card[0], purchase, base * factor, limit, 0.9 if purchase == "spot" else 1.0)


def _fit(
    rng: np.random.Generator,
    card: tuple[str, int, float, int, float],
    model: str,
    size: float,
    shapes: list[tuple[float, float]],
) -> Fit:
    """A rough roofline: reading the weights for each step of up to 32 sequences, and computing."""
    name, memory, bandwidth, tflops, _ = card
    rough = float(rng.uniform(0.9, 1.1))
    step_s = size / 1000 / bandwidth * 1.4 * rough
    row_s = size * 1e9 / (tflops * 1e12) / 0.5
    free = max(0.0, memory * 0.97 - size)
    load, ttft = [], []
    for prompt, output in shapes:
        seqs = min(32.0, free / ((prompt + output / 2) * size * 8e-6 + 1e-9))
        load.append(
            output * step_s / seqs + (prompt + output) * row_s if seqs >= 1 and step_s < 0.1 else math.inf
        )
        ttft.append(2 * step_s + prompt * row_s)
    return Fit(name, model, tuple(load), tuple(ttft), "given")
