"""Hosted models: what they cost, what they promise, and where they answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.units import Exchange
from stoa.planner.prices import ApiPrice, read_litellm
from stoa.planner.problem import Api, Place


def read_apis(
    entries: Sequence[doc.Api], places: Sequence[Place], folder: Path, exchange: Exchange
) -> tuple[tuple[Api, ...], tuple[Place, ...]]:
    """APIs, and all places with those of the APIs: at a place of its own, by default named after its provider."""
    known = {place.name: place for place in places}
    found = []
    for i, entry in enumerate(entries):
        price = _price(f"api[{i}]", entry, folder, exchange)
        name = entry.place or price.provider or entry.name
        if entry.place is None and name in {p.name for p in places}:
            raise ConfigError(
                f"api[{i}]: there is a place called {name} already, whose labels are not this service's; accepted: place, "
                "another name for where it answers, or the same if it does answer there",
                param=f"api[{i}].place",
            )
        labels = {"api", price.provider, *entry.labels} - {""}
        old = known.get(name)
        known[name] = (
            Place(name, frozenset(labels)) if old is None else replace(old, labels=old.labels | labels)
        )
        found.append(_api(f"api[{i}]", entry, price, name))
    return tuple(found), tuple(known.values())


def _api(at: str, entry: doc.Api, price: ApiPrice, place: str) -> Api:
    requests = math.inf if entry.requests is None else units.per_second(entry.requests, f"{at}.requests")
    tokens = math.inf if entry.tokens is None else units.per_second(entry.tokens, f"{at}.tokens")
    return Api(
        entry.name,
        place,
        entry.model,
        price.input_usd,
        price.output_usd,
        units.seconds(entry.ttft, f"{at}.ttft"),
        units.seconds(entry.tpot, f"{at}.tpot"),
        requests,
        tokens,
        math.inf if price.max_input_tokens is None else price.max_input_tokens,
        price.tiers,
    )


def _price(at: str, entry: doc.Api, folder: Path, exchange: Exchange) -> ApiPrice:
    stated = (entry.input is not None, entry.output is not None)
    filed = (entry.prices is not None, entry.price is not None)
    if all(stated) and not any(filed):
        assert entry.input is not None and entry.output is not None  # noqa: PT018  (the same, for the type checker)
        return ApiPrice(
            entry.name,
            "",
            units.token_usd(entry.input, f"{at}.input", exchange),
            units.token_usd(entry.output, f"{at}.output", exchange),
        )
    if entry.prices is None or entry.price is None or any(stated):
        raise ConfigError(
            f"{at}: {entry.name} needs a price; accepted: input and output, or prices (a file) and price (a model in it)",
            param=at,
        )
    found = read_litellm(folder / entry.prices).find(entry.price)
    exchange.usd(1.0, "USD", f"{at}: the price file")  # refused where the document cannot be converted
    return found
