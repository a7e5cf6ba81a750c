"""Autoscalers by name, with their parameters as text: what a command line can say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import msgspec

from stoa.errors import ConfigError
from stoa.fleet.policies.autoscaler import Elastic
from stoa.fleet.policies.facts import Autoscaler
from stoa.simulator import baselines

SCALERS: Mapping[str, type[Any]] = {
    "static-peak": baselines.StaticPeak,
    "hpa": baselines.Hpa,
    "ray-serve": baselines.RayServe,
    "knative": baselines.Knative,
    "request-rate": baselines.RequestRate,
    "sageserve": baselines.SageServe,
}
PLACEMENTS: Mapping[str, type[Any]] = {"on-demand": baselines.OnDemand, "spot-hedge": baselines.SpotHedge}
OURS = "elastic"
NAMES = f"{OURS}, or {'|'.join(SCALERS)} with +{'|+'.join(PLACEMENTS)}"


def choose_policy(name: str, settings: Sequence[str] = ()) -> Autoscaler[Any]:
    """`name`: "elastic", a scaler of `SCALERS` (on demand), or "scaler+placement". `settings`: "field=value" of either.
    ConfigError names what is accepted."""
    given = dict(_setting(text) for text in settings)
    kinds = _kinds(name)
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    if unknown := given.keys() - fields:
        raise ConfigError(
            f"policy {name!r} has no parameter {', '.join(sorted(unknown))}; accepted: {', '.join(fields) or 'none'}",
            param="set",
        )
    first, *placement = [_build(kind, given) for kind in kinds]
    return baselines.Both(first, *placement) if placement else first


def _kinds(name: str) -> list[type[Any]]:
    """Ours, or a scaler and a placement."""
    if name == OURS:
        return [Elastic]
    scaler, _, placement = name.partition("+")
    placement = placement or "on-demand"
    if scaler not in SCALERS or placement not in PLACEMENTS:
        raise ConfigError(f"policy {name!r} is unknown; accepted: {NAMES}", param="policy")
    return [SCALERS[scaler], PLACEMENTS[placement]]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} sets nothing; accepted: FIELD=VALUE", param="set")
    return name.replace("-", "_"), value


def _build(kind: type[Any], given: dict[str, str]) -> Any:
    """Takes its own fields out of `given`."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name not in given:
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if needed:
                raise ConfigError(f"say --set {field.name}=VALUE, which this policy needs", param="set")
            continue
        try:
            values[field.name] = msgspec.convert(given.pop(field.name), hints[field.name], strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{field.name}: {error}", param="set") from None
    return kind(**values)
