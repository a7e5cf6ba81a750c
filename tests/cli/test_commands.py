"""What the command line promises beyond its commands' own work."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from stoa.cli import adapter, serve
from stoa.cli.remote import checked, server_root
from stoa.config import Settings
from stoa.errors import InvalidRequest


def test_every_setting_is_a_flag_of_serve() -> None:
    """And every flag a setting, but for the two that say where settings come from or are a consent."""
    flags = set(inspect.signature(serve.serve).parameters)
    assert flags - {"config", "allow_anonymous"} == {f.name for f in msgspec.structs.fields(Settings)} - {
        "remote"
    }


def test_every_setting_is_documented() -> None:
    """In the table of docs/operations.md."""
    table = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    words = set(table.replace("|", " ").replace(",", " ").split())
    assert {f.name for f in msgspec.structs.fields(Settings)} <= words


def test_a_wrong_remote_is_told_with_its_file(tmp_path: Path) -> None:
    """The one that was named, and not the usual one."""
    file = tmp_path / "mine.toml"
    file.write_text('[[remote]]\nname = "x"\n')
    words = [sys.executable, "-m", "stoa.cli", "serve", "--config", str(file), "--port", "18473"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"stoa: {file}: remote 'x': ")


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_server_is_named_with_or_without_v1(url: str) -> None:
    """As OpenAI clients have it in their base URL."""
    assert server_root(url) == "http://h:1"


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (401, '{"error": {"message": "no key"}}', "no key; set STOA_API_KEY"),
        (404, "<html>", "answered 404"),
        (500, '{"detail": 1}', "answered 500"),
    ],
)
def test_a_refusal_of_the_server_is_one_line(status: int, body: str, match: str) -> None:
    """Also when something else than Stoa answers."""
    response = httpx.Response(status, text=body, request=httpx.Request("GET", "http://h/v1/models"))
    with pytest.raises(InvalidRequest, match=match):
        checked(response)


def test_a_bundled_adapter_is_not_removed(tmp_path: Path) -> None:
    """It is served in place: `rm` says so instead of pretending."""
    with pytest.raises(InvalidRequest, match="in place"):
        adapter.remove("upper", home=str(tmp_path))
