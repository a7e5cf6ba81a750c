"""`stoa costs` and `stoa price`, straight on a database."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
import structlog
import typer
from typer.testing import CliRunner

from stoa.cli import price
from stoa.cli.costs import costs
from stoa.economics.tables import LedgerEntry
from stoa.errors import ConfigError, InvalidPrice, InvalidRequest
from stoa.storage.database import Database, database_url
from stoa.tenancy.office import open_office

T0 = 1_700_000_000


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A command's output; its error as it was raised."""
    monkeypatch.setenv("STOA_HOME", str(tmp_path))
    app = typer.Typer()
    app.command("costs")(costs)
    app.add_typer(price.app, name="price")

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words)
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    yield run
    structlog.reset_defaults()  # the commands log to the runner's stderr, which is gone


def book(home: Path, *entries: tuple[str | None, str, int], key_id: str | None = None) -> None:
    async def write() -> None:
        database = Database(database_url("", home))
        async with database.begin() as session:
            session.add_all(
                LedgerEntry(
                    session_id="s", number=0, project_id=p, key_id=key_id, model=p and "m", line_item=item,
                    amount_nanos=nanos, quantity=1, start_s=T0,
                )
                for p, item, nanos in entries
            )  # fmt: skip
        await database.close()

    asyncio.run(write())


def test_prices_are_set_and_listed(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In dollars, with dates; a file that is wrong changes nothing."""
    assert run("price", "list") == "no prices\n"
    assert "energy: 0.30 USD per kWh from 2026-01-01" in run(
        "price", "set", "energy", "0.3", "--from", "2026-01-01"
    )
    file = tmp_path / "prices.csv"
    file.write_text("item,unit,amount,currency,valid_from,valid_to\nenergy,kWh,0.4,USD,2026-02-01,\n")
    assert run("price", "load", str(file)) == "loaded 1 prices\n"
    with pytest.raises(InvalidPrice):
        run("price", "load", str(file))
    found = json.loads(run("price", "list", "--json"))
    assert [(s["amount_nanos"], s["valid_to_s"] is None) for s in found] == [
        (300_000_000, False),
        (400_000_000, True),
    ]
    assert "0.40  kWh" in run("price", "list")


def test_costs_are_shown(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """By project, with what is nobody's, or spread over who used something."""
    span = ("--from", str(T0 - 1), "--to", str(T0 + 1))
    assert run("costs", *span) == "no costs\n"
    book(tmp_path, ("a", "compute", 3 * 10**9), ("b", "memory", 10**9), (None, "lost", 4 * 10**9))
    assert [line.split() for line in run("costs", *span).splitlines()[1:]] == [
        ["(nobody)", "4.00", "50.0%"],
        ["a", "3.00", "37.5%"],
        ["b", "1.00", "12.5%"],
        ["total", "8.00"],
    ]
    found = json.loads(run("costs", *span, "--json", "--spread-idle"))
    assert found["total_nanos"] == 8 * 10**9
    assert [(r["project_id"], r["amount_nanos"]) for r in found["results"]] == [
        ("a", 6 * 10**9),
        ("b", 2 * 10**9),
    ]
    assert run("costs", *span, "--by", "line-item").splitlines()[1].split() == ["lost", "4.00", "50.0%"]
    for by in ("key", "model"):
        assert "total" in run("costs", *span, "--by", by)
    file = tmp_path / "out.csv"
    assert run("costs", *span, "--csv", str(file)) == f"{file}: 3 entries\n"
    with pytest.raises(InvalidRequest, match="--to"):
        run("costs", "--from", str(T0), "--to", str(T0))
    with pytest.raises(InvalidRequest, match="--from 2400-01-01 is in the future"):
        run("costs", "--from", "2400-01-01")


def test_costs_have_names(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Of projects and keys, beside their ids."""
    span = ("--from", str(T0 - 1), "--to", str(T0 + 1))
    run("price", "list")

    async def make() -> str:
        database = Database(database_url("", tmp_path))
        new = await open_office(database).keys.create("default", "default", actor="a", name="laptop")
        await database.close()
        return new.key.id

    key_id = asyncio.run(make())
    book(tmp_path, ("default", "compute", 10**9), key_id=key_id)
    assert [line.split() for line in run("costs", *span, "--by", "key").splitlines()] == [
        ["project_id", "project_name", "api_key_id", "api_key_name", "USD", "share"],
        ["default", "Default", key_id, "laptop", "1.00", "100.0%"],
        ["total", "1.00"],
    ]
    found = json.loads(run("costs", *span, "--json"))["results"]
    assert found == [{"project_id": "default", "project_name": "Default", "amount_nanos": 10**9}]


def test_files_that_cannot_be(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Are named with the reason; without pyarrow nothing at all is written."""
    with pytest.raises(InvalidRequest, match=r"^/nope/x.csv cannot be written: No such file or directory$"):
        run("costs", "--csv", "/nope/x.csv")
    with pytest.raises(InvalidRequest, match=r"cannot be written: Is a directory$"):
        run("costs", "--csv", str(tmp_path))
    with pytest.raises(InvalidRequest, match="not the name of a file"):
        run("costs", "--csv", ".")
    with pytest.raises(InvalidPrice, match=r"^/nope.csv cannot be read: No such file or directory$"):
        run("price", "load", "/nope.csv")
    with pytest.raises(InvalidRequest, match=r"^--by is 'x'; accepted: project, key, model, line-item$"):
        run("costs", "--by", "x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError):
        run("costs", "--csv", str(tmp_path / "a.csv"), "--parquet", str(tmp_path / "b"))
    assert not (tmp_path / "a.csv").exists()


def test_another_database(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Is named with --db."""
    other = f"sqlite:///{tmp_path / 'other.db'}"
    run("price", "set", "energy", "0.3", "--db", other)
    assert run("price", "list") == "no prices\n"
    assert "energy" in run("price", "list", "--db", other)
    assert run("costs", "--db", other) == "no costs\n"
