"""`stoa tenant` and `stoa key`, on a home of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from stoa.cli import key, tenant
from stoa.errors import Conflict, InvalidRequest, NotFound, StoaError


class Shell:
    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str) -> str:
        """What a command prints. Raises as it does."""
        noun, *rest = words
        app = {"tenant": tenant.app, "key": key.app}[noun]
        result = CliRunner().invoke(app, [*rest, "--home", str(self.home)])
        if isinstance(result.exception, StoaError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    yield Shell(tmp_path / "home")
    structlog.reset_defaults()  # the commands log to the runner's stderr, which is gone


def test_a_tenant_from_nothing(shell: Shell) -> None:
    """The database is made on the way; what was set is shown."""
    made = shell.json("tenant", "add", "Acme", "--weight", "2")
    assert (made["name"], made["weight"], made["status"]) == ("Acme", 2.0, "active")
    assert {t["name"] for t in shell.json("tenant", "list")} == {"Default", "Acme"}
    shell("tenant", "set", "Acme", "--rpm", "60", "--tpm", "1000", "--concurrent", "4", "--name", "Acme 2")
    words = ("--budget", "25.00", "--period", "month", "--alert", "20.00", "--webhook", "https://example.com")
    shown = shell.json("tenant", "set", made["id"], *words)
    assert shown == shell.json("tenant", "show", "Acme 2")
    assert (shown["requests_per_minute"], shown["tokens_per_minute"], shown["concurrent_requests"]) == (
        60,
        1000,
        4,
    )
    assert (shown["budget_usd"], shown["budget_period"]) == ("25.00", "month")
    assert shown["alerts"] == [{"usd": "20.00", "webhook": "https://example.com", "recipients": []}]
    shown = shell.json("tenant", "set", made["id"], "--period", "total", "--rpm", "none", "--alert", "none")
    assert (shown["budget_usd"], shown["budget_period"], shown["alerts"]) == ("25.00", "total", [])
    assert (shown["requests_per_minute"], shown["tokens_per_minute"]) == (None, 1000)
    assert shell.json("tenant", "set", made["id"], "--budget", "none")["budget_usd"] is None
    assert shell.json("tenant", "archive", "Acme 2")["status"] == "archived"
    assert [t["name"] for t in shell.json("tenant", "list")] == ["Default"]
    assert len(shell.json("tenant", "list", "--archived")) == 2


def test_a_key_from_nothing(shell: Shell) -> None:
    """The secret is printed once, when it is made."""
    shell("tenant", "add", "Acme")
    words = (
        "--name",
        "ci",
        "--scope",
        "model.request",
        "--scope",
        "model.read",
        "--expires",
        "90d",
        "--rpm",
        "5",
    )
    made = shell.json("key", "add", "Acme", *words)
    assert made["secret"].startswith("sk-stoa-")
    assert made["scopes"] == ["model.request", "model.read"]
    assert made["expires_at"] == made["created_at"] + 90 * 86400
    listed = shell("key", "list", "Acme")
    assert made["secret"] not in listed
    assert made["secret"][-4:] in listed
    again = shell.json("key", "rotate", made["id"], "--overlap", "1h")
    assert (again["id"], again["secret"] != made["secret"]) == (made["id"], True)
    assert shell.json("key", "revoke", made["id"]) == {"id": made["id"], "revoked": True}
    assert shell.json("key", "list", "Acme") == []
    assert shell("key", "list", "Acme") == "no keys\n"


def test_a_key_of_administrators(shell: Shell) -> None:
    """Is made, listed and revoked with --admin or by its id."""
    made = shell.json("key", "add", "--admin", "--name", "root")
    assert made["secret"].startswith("sk-stoa-admin-")
    assert [k["id"] for k in shell.json("key", "list", "--admin")] == [made["id"]]
    shell("key", "revoke", made["id"])
    assert shell.json("key", "list", "--admin") == []


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("key add", "--admin"),
        ("key add default --admin", "not both"),
        ("key add default --concurrent 0", "--concurrent is '0'; accepted: a whole number from 1"),
        (
            "key revoke sk-stoa-abc",
            "that looks like a secret; give the key's id, key_…; stoa key list PROJECT",
        ),
        ("key add --admin --rpm 5", "--admin"),
        ("key add default --expires soon", "90d"),
        ("key add default --expires 0s", "after now"),
        ("key add default --scope root", "accepted: all"),
        ("tenant set default --rpm many", "whole number"),
        ("tenant set default --rpm 0", "from 1"),
        ("tenant set default --budget lots", "USD"),
        ("tenant set default --budget 0", "more than 0"),
        ("tenant set default --period total", "--budget"),
        ("tenant set default --webhook http://x", "--alert"),
        ("tenant set default --budget 5 --period year", "--period is 'year'; accepted: month, total"),
        ("tenant set default --alert 5 --webhook http://127.0.0.1:8000/x", "127.0.0.1, which is not"),
        ("tenant set default --alert 5 --webhook http://[::1]/x", "::1, which is not"),
        ("tenant set default --alert 5 --webhook http://LOCALHOST/x", "localhost, which is not"),
        ("tenant archive default", "default"),
    ],
)
def test_mistakes_are_named(shell: Shell, words: str, match: str) -> None:
    """With what would be accepted."""
    with pytest.raises(InvalidRequest, match=match):
        shell(*words.split())


@pytest.mark.parametrize("words", ["tenant show x", "key list x", "key revoke x", "key rotate x"])
def test_what_is_not_there_is_not_found(shell: Shell, words: str) -> None:
    """By the name that was said."""
    with pytest.raises(NotFound, match="'x'"):
        shell(*words.split())


@pytest.mark.parametrize(
    "mistake",
    ["--budget abc", "--alert 0", "--rpm 0", "--period total", "--alert 5 --webhook http://10.0.0.1"],
)
def test_what_is_wrong_changes_nothing(shell: Shell, mistake: str) -> None:
    """Neither what was said before the mistake nor what was said after it."""
    before = shell.json("tenant", "show", "default")
    words = ["--name", "X", "--weight", "3", "--tpm", "5", "--concurrent", "3"]
    with pytest.raises(InvalidRequest):
        shell("tenant", "set", "default", *words, *mistake.split())
    assert shell.json("tenant", "show", "default") == before


def test_a_key_that_cannot_be_is_not_made(shell: Shell) -> None:
    """A wrong limit leaves no key behind whose secret nobody saw."""
    with pytest.raises(InvalidRequest):
        shell("key", "add", "default", "--concurrent", "0")
    assert shell.json("key", "list", "default") == []


def test_names_are_taken_once(shell: Shell) -> None:
    """By active tenants; the refusal says by which."""
    made = shell.json("tenant", "add", "Acme")
    shell("tenant", "add", "Other")
    for words in (("add", " Acme"), ("set", "Other", "--name", "Acme")):
        with pytest.raises(Conflict, match=made["id"]):
            shell("tenant", *words)
    shell("tenant", "set", "Acme", "--name", "Acme")
    shell("tenant", "archive", "Acme")
    with pytest.raises(Conflict, match="archived"):
        shell("tenant", "set", made["id"], "--budget", "none")
    assert shell.json("tenant", "add", "Acme")["id"] != made["id"]


def test_an_alert_of_the_same_amount_is_changed(shell: Shell) -> None:
    """And each is shown on a line, without what it has not."""
    for words in ("40", "40.00", "40 --webhook https://example.com", "50"):
        shell("tenant", "set", "default", "--alert", *words.split())
    shown = shell("tenant", "show", "default").splitlines()
    assert [line.split() for line in shown[-2:]] == [
        ["alerts", "usd=40.00", "webhook=https://example.com"],
        ["usd=50.00"],
    ]


def test_times_are_for_people(shell: Shell) -> None:
    """In tables, in UTC; JSON keeps Unix seconds."""
    time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    key = shell.json("key", "add", "default", "--expires", "1d")
    for words in (("tenant", "show", "default"), ("tenant", "list"), ("key", "list", "default")):
        assert re.search(time, shell(*words))
    assert re.search(rf"old_secret_until +{time}", shell("key", "rotate", key["id"], "--overlap", "1h"))
    assert re.search("old_secret_until +now", shell("key", "rotate", key["id"]))
    assert shell.json("key", "rotate", key["id"])["old_secret_until"] is None
    assert isinstance(shell.json("key", "rotate", key["id"], "--overlap", "1h")["old_secret_until"], int)


def test_a_secret_is_not_repeated(shell: Shell) -> None:
    """Where a key's id belongs."""
    secret = shell.json("key", "add", "default")["secret"]
    for verb in ("rotate", "revoke"):
        with pytest.raises(InvalidRequest) as refused:
            shell("key", verb, secret)
        assert secret not in refused.value.message
