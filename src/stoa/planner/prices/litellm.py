"""Prices of hosted models in LiteLLM's layout: a JSON object of models with USD a token.

Read are input_cost_per_token, output_cost_per_token, max_input_tokens, litellm_provider, and what longer prompts cost:
input_cost_per_token_above_128k_tokens (any number) and tiered_pricing. A model without a price a token (it is paid by the
image, the second, the page) is not in the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stoa.errors import ConfigError
from stoa.planner.prices.normal import ApiPrice
from stoa.planner.problem import Tier

_SAMPLE = "sample_spec"  # explains the layout, and is no model
_ABOVE = re.compile(r"(input|output)_cost_per_token_above_(\d+)(k?)_tokens")
_ENOUGH = 5  # names to offer where one is not there


@dataclass(frozen=True, slots=True)
class ApiPrices:
    """The models of a file, unchecked until they are asked for: one odd entry of a thousand is nobody's trouble."""

    path: Path
    entries: Mapping[str, Mapping[str, Any]]

    def find(self, name: str) -> ApiPrice:
        """ConfigError names file, line and model of a price that is negative or no number, and of a model that is free
        (nobody's list means that); and for a model that is not there, some whose names are near."""
        if name not in self.entries:
            raise ConfigError(f"{self.path} has no model {name!r}; {self._nearest(name)}", param="price")
        try:
            return _price(name, self.entries[name])
        except ConfigError as error:
            line = _line_of(self.path, name)
            raise ConfigError(
                f"{self.path}, line {line}, {name}: {error.message}", param=error.param
            ) from None

    def _nearest(self, name: str) -> str:
        end = name.lower().rsplit("/", 1)[-1]
        near = [known for known in self.entries if end in known.lower() or known.lower() in name.lower()]
        if not near:
            return f"it has {len(self.entries)} others, such as {', '.join(sorted(self.entries)[:_ENOUGH])}"
        return f"near it are {', '.join(sorted(near, key=len)[:_ENOUGH])}"


def read_litellm(path: Path) -> ApiPrices:
    """ConfigError for a file that cannot be read or is no JSON object of objects."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="prices") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path}: {error}; accepted: a JSON object of models with input_cost_per_token, output_cost_per_token",
            param="prices",
        ) from None
    return ApiPrices(path, {name: e for name, e in document.items() if name != _SAMPLE and _is_by_token(e)})


def _is_by_token(entry: Mapping[str, Any]) -> bool:
    return bool({"input_cost_per_token", "output_cost_per_token", "tiered_pricing"} & entry.keys())


def _price(name: str, entry: Mapping[str, Any]) -> ApiPrice:
    tiers = _tiers(entry)
    if tiers and tiers[0].above_tokens <= 0:
        input_usd, output_usd = tiers[0].input_usd, tiers[0].output_usd
    else:
        input_usd, output_usd = (_usd(entry, f"{kind}_cost_per_token", None) for kind in ("input", "output"))
    if input_usd == 0 and output_usd == 0:
        raise ConfigError("both prices are 0; accepted: at least one above 0", param="input_cost_per_token")
    return ApiPrice(
        name,
        str(entry.get("litellm_provider", "")),
        input_usd,
        output_usd,
        _whole(entry, "max_input_tokens"),
        tuple(t for t in tiers if t.above_tokens > 0),
    )


def _tiers(entry: Mapping[str, Any]) -> list[Tier]:
    """Of either form, by length. What a tier does not say costs what the model's own price says."""
    own = (entry.get("input_cost_per_token"), entry.get("output_cost_per_token"))
    found: dict[float, dict[str, Any]] = {}
    for key, value in entry.items():
        if match := _ABOVE.fullmatch(key):
            kind, number, thousands = match.groups()
            found.setdefault(float(number) * (1000 if thousands else 1), {})[f"{kind}_cost_per_token"] = value
    tiered = entry.get("tiered_pricing", [])
    if not isinstance(tiered, list) or not all(isinstance(tier, dict) for tier in tiered):
        raise ConfigError("tiered_pricing is no list of objects", param="tiered_pricing")
    for tier in tiered:
        match tier.get("range"):
            case [int() | float() as start, *_]:
                found.setdefault(float(start), {}).update(tier)
            case other:
                raise ConfigError(
                    f"a tier's range is {other!r}; accepted: [tokens, tokens]", param="tiered_pricing"
                )
    return [
        Tier(
            above,
            _usd(tier, "input_cost_per_token", own[0]),
            _usd(tier, "output_cost_per_token", own[1]),
        )
        for above, tier in sorted(found.items())
    ]


def _usd(entry: Mapping[str, Any], key: str, otherwise: Any) -> float:
    """USD a token; `otherwise` where the entry has none."""
    value = otherwise if entry.get(key) is None else entry[key]
    try:
        usd = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        usd = math.nan
    if not 0 <= usd < 1:  # NaN too
        shown = "missing" if value is None else repr(value)
        raise ConfigError(f"{key} is {shown}; accepted: USD a token, from 0", param=key)
    return usd


def _whole(entry: Mapping[str, Any], key: str) -> int | None:
    value = entry.get(key)
    try:
        return None if value is None else int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{key} is {value!r}; accepted: a whole number of tokens", param=key) from None


def _line_of(path: Path, name: str) -> int:
    """Where the model's entry begins; 1 if it cannot be found (a name written with escapes, a file that changed)."""
    key = msgspec.json.encode(name).decode()
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((n for n, line in enumerate(lines, 1) if key in line), 1)
