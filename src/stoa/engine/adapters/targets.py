"""Which modules PEFT would adapt, with which rank and scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stoa.engine.adapters.config import LoraConfig
from stoa.engine.adapters.names import Key, module_name
from stoa.engine.adapters.patterns import match_all, match_ends
from stoa.errors import InvalidAdapter

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class LoraShape:
    """One module's adapter: y += scale * (x Aᵀ) Bᵀ with A [rank, in] and B [out, rank]."""

    rank: int
    scale: float


def resolve(config: LoraConfig, keys: Iterable[Key], max_rank: int) -> dict[Key, LoraShape]:
    """What PEFT computes for each module that has tensors; refuses those it would ignore."""
    named = {key: module_name(key) for key in keys}
    names = list(named.values())
    targeted = _targeted(config, names)
    ranks = _by_pattern(config.rank_pattern, config.rank, names, "rank_pattern")
    alphas = _by_pattern(config.alpha_pattern, config.alpha, names, "alpha_pattern")
    shapes = {}
    for (key, name), target, rank, alpha in zip(named.items(), targeted, ranks, alphas, strict=True):
        if not target:
            raise InvalidAdapter(
                f"there are tensors for {name}, which target_modules, exclude_modules or layers_to_transform "
                f"leave out; target_modules: {config.targets!r}"[:500]
            )
        if rank > max_rank:
            raise InvalidAdapter(
                f"{name} has rank {rank}; at most {max_rank} is accepted (engine setting max_lora_rank)"
            )
        shapes[key] = LoraShape(rank, config.scale(rank, alpha))
    return shapes


def _targeted(config: LoraConfig, names: Sequence[str]) -> list[bool]:
    """PEFT's choice of modules: exclusion first, then target_modules, then layers, which do
    not bind modules named in full."""
    targets = config.targets
    excluded = _named(config.excluded, names, "exclude_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        chosen = [n != "lm_head" for n in names]
    else:
        chosen = _named(targets, names, "target_modules")
    if not isinstance(targets, str):
        inside = _in_layers(config, names)
        chosen = [c and (i or n in targets) for c, i, n in zip(chosen, inside, names, strict=True)]
    return [c and not e for c, e in zip(chosen, excluded, strict=True)]


def _named(wanted: str | tuple[str, ...], names: Sequence[str], field: str) -> list[bool]:
    if isinstance(wanted, str):
        return [fits for (fits,) in match_all([wanted], names, field)]
    return [any(name == w or name.endswith(f".{w}") for w in wanted) for name in names]


def _in_layers(config: LoraConfig, names: Sequence[str]) -> list[bool]:
    """Is the module's layer among layers_to_transform? Modules outside the layers are not."""
    layers = config.layers
    if layers is None:
        return [True] * len(names)
    if config.layers_patterns and "layers" not in config.layers_patterns:
        raise InvalidAdapter(
            f"layers_pattern {config.layers_patterns!r} is not supported; accepted: 'layers'"
        )
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name in names)
    return [match is not None and int(match[1]) in layers for match in found]


def _by_pattern(
    patterns: Mapping[str, _Value], default: _Value, names: Sequence[str], field: str
) -> list[_Value]:
    """For each name the value of the first pattern that fits its end at a dot, else the default."""
    fits = match_ends(patterns, names, field)
    return [next((v for v, fit in zip(patterns.values(), row, strict=True) if fit), default) for row in fits]
