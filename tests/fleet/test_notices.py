"""Clouds' announcements are understood as their metadata services make them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from stoa.fleet.notices import AwsSpot, AzureEvents, GcpPreempted, Notices, NoticeSource

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


class Metadata:
    """A metadata server: answers what tests put into `pages` (status, headers, body), and keeps what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, str], tuple[int, dict[str, str], str]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                metadata.asked.append((self.command, self.path, headers))
                status, more, body = metadata.pages.get(
                    (self.command, self.path.split("?")[0]), (404, {}, "")
                )
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    yield server
    server.close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=5) as client:
        yield client


TOKEN = ("PUT", "/latest/api/token")
ACTION = ("GET", "/latest/meta-data/spot/instance-action")


def test_aws_announces_two_minutes_ahead(metadata: Metadata, http: httpx.Client) -> None:
    """404 until then; every question shows a session token."""
    aws = AwsSpot(metadata.url, wall_clock=lambda: NOW)
    metadata.pages[TOKEN] = (200, {}, "secret")
    assert aws.ask(http) is None
    metadata.pages[ACTION] = (200, {}, '{"action": "terminate", "time": "2026-05-04T12:02:00Z"}')
    assert aws.ask(http) == 120.0
    asked = [headers for method, path, headers in metadata.asked if path == ACTION[1]]
    assert all(headers["x-aws-ec2-metadata-token"] == "secret" for headers in asked)
    assert sum(method == "PUT" for method, _, _ in metadata.asked) == 1


def test_aws_tokens_are_renewed(metadata: Metadata, http: httpx.Client) -> None:
    """401: the token has run out; another one is asked for, once."""
    aws = AwsSpot(metadata.url, wall_clock=lambda: NOW)
    metadata.pages[TOKEN] = (200, {}, "secret")
    metadata.pages[ACTION] = (401, {}, "")
    with pytest.raises(httpx.HTTPError):
        aws.ask(http)
    assert sum(method == "PUT" for method, _, _ in metadata.asked) == 2


def test_gcp_says_yes_or_no(metadata: Metadata, http: httpx.Client) -> None:
    """TRUE: about thirty seconds are left."""
    gcp, page = GcpPreempted(metadata.url), ("GET", "/computeMetadata/v1/instance/preempted")
    metadata.pages[page] = (200, {"Metadata-Flavor": "Google"}, "FALSE")
    assert gcp.ask(http) is None
    metadata.pages[page] = (200, {"Metadata-Flavor": "Google"}, "TRUE\n")
    assert gcp.ask(http) == 30.0
    assert metadata.asked[0][2]["metadata-flavor"] == "Google"


def test_somebody_who_is_not_google_is_not_believed(metadata: Metadata, http: httpx.Client) -> None:
    """A captive portal may answer anything."""
    metadata.pages["GET", "/computeMetadata/v1/instance/preempted"] = (200, {}, "TRUE")
    with pytest.raises(ValueError):
        GcpPreempted(metadata.url).ask(http)


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ("", None),
        (
            '{"EventType": "Preempt", "Resources": ["vm1"], "NotBefore": "Mon, 04 May 2026 12:00:45 GMT"}',
            45.0,
        ),
        ('{"EventType": "Preempt", "Resources": ["vm1"], "NotBefore": ""}', 0.0),
        ('{"EventType": "Freeze", "Resources": ["vm1"], "NotBefore": ""}', None),
        ('{"EventType": "Preempt", "Resources": ["another"], "NotBefore": ""}', None),
    ],
)
def test_azure_lists_events_of_many_machines(
    metadata: Metadata, http: httpx.Client, events: str, seconds: float | None
) -> None:
    """Those count that end this one."""
    metadata.pages["GET", "/metadata/instance/compute/name"] = (200, {}, "vm1")
    metadata.pages["GET", "/metadata/scheduledevents"] = (200, {}, f'{{"Events": [{events}]}}')
    assert AzureEvents(metadata.url, wall_clock=lambda: NOW).ask(http) == seconds
    assert all(headers["metadata"] == "true" for _, _, headers in metadata.asked)


def test_clouds_that_are_not_there_are_asked_no_more(metadata: Metadata) -> None:
    """The machine is of one of them at most."""
    metadata.pages["GET", "/computeMetadata/v1/instance/preempted"] = (
        200,
        {"Metadata-Flavor": "Google"},
        "FALSE",
    )
    sources: list[NoticeSource] = [
        AwsSpot(metadata.url), GcpPreempted(metadata.url), AzureEvents(metadata.url)
    ]  # fmt: skip
    notices = Notices(sources, clock=lambda: 0.0)
    for _ in range(10):
        notices.ask()
    asked = len(metadata.asked)
    notices.ask()
    assert [path for _, path, _ in metadata.asked[asked:]] == ["/computeMetadata/v1/instance/preempted"]
    metadata.pages["GET", "/computeMetadata/v1/instance/preempted"] = (200, {}, "garbage")
    for _ in range(10):
        notices.ask()
    assert notices.any_sources  # one that has answered once stays
    notices.close()


def test_the_earliest_end_counts_and_comes_nearer() -> None:
    """SIGTERM, a metadata service, or both: it is not taken back and not put off."""
    now = 100.0
    notices = Notices([], clock=lambda: now)
    assert notices.ends_in_s() is None
    notices.heard(120.0)
    now = 110.0
    notices.heard(500.0)
    assert notices.ends_in_s() == 110.0
    notices.heard(30.0)
    assert notices.ends_in_s() == 30.0
    now = 200.0
    assert notices.ends_in_s() == 0.0
    notices.close()
