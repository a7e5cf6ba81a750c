"""Places, machines and offers of a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoa.errors import ConfigError
from stoa.planner.files.document import Document
from stoa.planner.files.sites import Sites, read_sites
from stoa.planner.files.units import Exchange
from tests.planner.files.worlds import cloud, document, files, owned

BOX = {"name": "box", "accelerator": "L40S", "accelerators": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return files(tmp_path)


def sites(folder: Path, *places: dict[str, Any], **changes: Any) -> Sites:
    found = msgspec.convert(document(place=list(places), **changes), Document)
    return read_sites(found, folder, Exchange())


def prices(found: Sites) -> dict[str, float]:
    return {offer.name: round(offer.hourly_usd, 6) for offer in found.offers}


def test_machines_are_bought_in_every_way_that_has_a_price(folder: Path) -> None:
    """Unless the place, or the machine, says in which."""
    place = cloud([{"type": "small"}, {"type": "large", "buy": ["on_demand"]}], reserved="40 % off")
    found = sites(folder, place)
    assert prices(found) == {
        "small at ireland (on-demand)": 0.8, "small at ireland (spot)": 0.25, "small at ireland (reserved)": 0.48,
        "large at ireland (on-demand)": 10.0,
    }  # fmt: skip
    assert [(m.name, m.accelerator, m.memory_gib, m.power_kw) for m in found.machines] == [
        ("small", "L4", 24, 0.072), ("large", "H100", 80, 0.7),
    ]  # fmt: skip
    assert found.places[0].labels == {"cloud", "eu"}
    assert [offer.why for offer in found.offers if offer.machine == "small"] == [
        "the price list prices.csv, the cheapest of 2 zones", "the price list prices.csv, the cheapest of 2 zones",
        "40 % off the price by the hour (the price list prices.csv, the cheapest of 2 zones)",
    ]  # fmt: skip


def test_the_documents_word_goes_before_the_price_lists(folder: Path) -> None:
    """Of a price, and of how many at most; the machine's before the place's."""
    machine = {
        "type": "small",
        "on_demand": "2 USD/h",
        "reserved": "1 USD/h",
        "limit": {"spot": 3},
        "committed": 2,
    }
    found = sites(folder, cloud([machine], reserved="10 % off", zone="eu-a"))
    assert list(prices(found).values()) == [2.0, 0.3, 1.0]
    assert [offer.limit for offer in found.offers] == [None, 3, None]
    assert found.committed == {("ireland", "small"): 2}
    assert [offer.why for offer in found.offers] == ["as stated", "the price list prices.csv", "as stated"]
    every = sites(folder, cloud([{"type": "small", "limit": 7}]))
    assert [offer.limit for offer in every.offers] == [7, 7]


def test_a_pattern_is_all_machines_that_fit(folder: Path) -> None:
    """Of the price list's, at the place."""
    found = sites(folder, cloud([{"type": "*a*", "buy": ["on_demand"]}]))
    assert [offer.machine for offer in found.offers] == ["large", "small"]


def test_spot_machines_are_there_as_often_as_is_known(folder: Path) -> None:
    """Stated, from a trace in either reading, or not known, which is said."""
    stated = sites(folder, cloud([{"type": "small"}], spot_availability="90 %"))
    assert [offer.availability for offer in stated.offers] == [1.0, 0.9]
    traced = sites(folder, cloud([{"type": "small"}], spot_trace="spot.json"))
    assert traced.offers[1].availability == 0.75
    assert "there 75.0% of the time, as spot.json has it" in traced.notes[-1]
    inverted = sites(folder, cloud([{"type": "small", "spot_inverted": True}], spot_trace="spot.json"))
    assert inverted.offers[1].availability == 0.75
    assert "no statistics" in sites(folder, cloud([{"type": "small"}])).notes[-1]


def test_owned_machines_cost_their_power(folder: Path) -> None:
    """Or what is stated; nothing if nobody says, which is said."""
    found = sites(
        folder,
        owned([{"type": "box", "count": 2}], power_price="0.2 USD/kWh", carbon="380 g/kWh"),
        machine=[BOX],
    )
    (offer,) = found.offers
    assert (offer.purchase, offer.limit, offer.hourly_usd) == ("owned", 2, pytest.approx(0.14))
    assert offer.why == "0.7 kW of power at 0.2 USD a kWh"
    assert (found.machines[0].memory_gib, found.places[0].carbon_g_per_kwh) == (96, 380)
    assert found.places[0].labels == {"owned"}
    stated = sites(folder, owned([{"type": "box", "count": 2, "hourly": "0.5 USD/h"}]), machine=[BOX])
    assert stated.offers[0].hourly_usd == 0.5
    free = sites(folder, owned([{"type": "box", "count": 2}]), machine=[BOX])
    assert free.offers[0].hourly_usd == 0
    assert "no price of power" in free.notes[0]


def test_a_machine_may_have_an_accelerator_without_a_datasheet(folder: Path) -> None:
    """If its memory and power are stated."""
    card = {"name": "box", "accelerator": "Gaudi 3", "accelerators": 8, "memory": "128 GB", "power": "9 kW"}
    found = sites(folder, owned([{"type": "box", "count": 1}], power_price="0.1 USD/kWh"), machine=[card])
    assert (found.machines[0].accelerator, found.offers[0].hourly_usd) == ("Gaudi 3", pytest.approx(0.9))
    assert found.machines[0].memory_gib == pytest.approx(8 * 128e9 / 2**30)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (cloud([{"type": "large", "buy": ["spot"]}]), r"\[0\]: large has no spot price at ireland; the price file says"),
        (cloud([{"type": "large", "on_demand": "0 USD/h"}]), "on_demand: the price is 0"),
        (cloud([{"type": "huge"}]), "no machine 'huge' among the prices; there is large, small, tiny"),
        (cloud([{"type": "huge-*"}]), "no machine of the price file is 'huge-"),
        (cloud([{"type": "small"}], region="mars"), "prices.csv has no machine with accelerators in region 'mars'"),
        (cloud([{"type": "small", "committed": 1}]), "small has no reserved price"),
        (cloud([{"type": "small", "reserved": "100 % off"}]), "accepted: less than 100 % off"),
        (cloud([{"type": "small", "reserved": "cheap"}]), "reserved is 'cheap'"),
        (cloud([{"type": "small", "count": 1}]), "count and hourly are of owned machines"),
        (cloud([{"type": "box"}], prices="missing.csv"), "No such file"),
        ({"name": "x", "kind": "cloud", "machine": [{"type": "box"}]}, "box has no price at x; accepted: on_demand, spot"),
        ({"name": "x", "kind": "cloud", "machine": [{"type": "new"}]}, "nothing says which accelerators 'new' has"),
        ({"name": "x", "kind": "cloud", "spot_advisor": "a"}, "goes with prices"),
        (owned([{"type": "box"}]), "how many are owned"),
        (owned([{"type": "box", "count": 1, "spot": "1 USD/h"}]), "owned machines are not bought"),
        (owned([{"type": "box", "count": 1}], reserved="1 USD/h"), "cellar is owned; accepted: no prices"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_by_its_key(folder: Path, place: dict[str, Any], says: str) -> None:
    """With what would be accepted."""
    with pytest.raises(ConfigError, match=says):
        sites(folder, place, machine=[BOX])
