"""Round trips and traffic between where requests come from and where they are answered."""

from __future__ import annotations

from collections.abc import Sequence

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.residency import places_of
from stoa.planner.files.units import Exchange
from stoa.planner.problem import Network, Place


def read_network(document: doc.Document, places: Sequence[Place], exchange: Exchange) -> Network:
    """Links to a label go to all places that have it; of two links for the same pair the later one counts. ConfigError for
    an origin or place that is not there."""
    latency_s: dict[tuple[str, str], float] = {}
    usd_per_gib: dict[tuple[str, str], float] = {}
    origins = [origin.name for origin in document.origin]
    for i, link in enumerate(document.network.link):
        at = f"network.link[{i}]"
        if link.origin not in origins:
            raise ConfigError(
                f"{at}.from: there is no [[origin]] {link.origin!r}; accepted: {', '.join(origins) or 'none is given'}",
                param=f"{at}.from",
            )
        for place in sorted(places_of([link.place], places, f"{at}.to")):
            if link.latency is not None:
                latency_s[link.origin, place] = units.seconds(link.latency, f"{at}.latency")
            if link.traffic is not None:
                usd_per_gib[link.origin, place] = units.gib_usd(link.traffic, f"{at}.traffic", exchange)
    return Network(latency_s, usd_per_gib, document.network.bytes_per_token)
