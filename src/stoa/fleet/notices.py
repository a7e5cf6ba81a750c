"""Machines announce that they will be taken away. Who is asked, and what it says.

| cloud | question                                                  | notice                       |
|-------|-----------------------------------------------------------|------------------------------|
| AWS   | IMDSv2 `/latest/meta-data/spot/instance-action`           | two minutes                  |
| GCP   | `/computeMetadata/v1/instance/preempted`                  | 30 s, not promised           |
| Azure | `/metadata/scheduledevents` (Preempt, Terminate, …)       | 30 s and more                |

Sources: the clouds' documentation of these services. Ray's node drain and SIGTERM come other ways (`cluster/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar

import httpx
import msgspec
import structlog

T = TypeVar("T")
log = structlog.get_logger("stoa.fleet")
_LINK_LOCAL = "http://169.254.169.254"
_GCP = "http://metadata.google.internal"
_ANSWER_S = 1.0
_TOKEN_TTL_S = 21600
_MOST_SILENCE = 5  # questions without an answer, before a source is asked no more


class _Action(msgspec.Struct):
    time: str


class _Event(msgspec.Struct):
    type: str = msgspec.field(name="EventType")
    resources: list[str] = msgspec.field(name="Resources", default=[])
    not_before: str = msgspec.field(name="NotBefore", default="")


class _Events(msgspec.Struct):
    events: list[_Event] = msgspec.field(name="Events")


class NoticeSource(Protocol):
    """Implemented for each cloud below. `ask` raises httpx.HTTPError where nobody answers, ValueError where it is
    somebody else."""

    name: str

    def ask(self, http: httpx.Client) -> float | None:
        """Seconds until the machine ends; None: nothing is announced."""
        ...


class AwsSpot:
    """IMDSv2 only: a token first, with a PUT that does not cross proxies."""

    name = "aws"

    def __init__(self, url: str = _LINK_LOCAL, *, wall_clock: Callable[[], datetime] | None = None) -> None:
        self._url, self._now = url, wall_clock or _utc_now
        self._token: str | None = None

    def ask(self, http: httpx.Client) -> float | None:
        response = self._get(http)
        if response.status_code == 401:  # the token is too old
            self._token = None
            response = self._get(http)
        if response.status_code == 404:
            return None
        action = _parse(response, _Action)
        ends = datetime.fromisoformat(action.time)
        return max(0.0, (ends - self._now()).total_seconds())

    def _get(self, http: httpx.Client) -> httpx.Response:
        if self._token is None:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
            self._token = http.put(f"{self._url}/latest/api/token", headers=ttl).raise_for_status().text
        return http.get(
            f"{self._url}/latest/meta-data/spot/instance-action",
            headers={"X-aws-ec2-metadata-token": self._token},
        )


class GcpPreempted:
    """No deadline is told: 30 s from the first yes."""

    name = "gcp"
    grace_s = 30.0

    def __init__(self, url: str = _GCP) -> None:
        self._url = url

    def ask(self, http: httpx.Client) -> float | None:
        response = http.get(
            f"{self._url}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
        )
        if response.raise_for_status().headers.get("Metadata-Flavor") != "Google":
            raise ValueError("not Google's metadata server")
        return self.grace_s if response.text.strip() == "TRUE" else None


class AzureEvents:
    """The events are of a whole scale set; those that name this machine count."""

    name = "azure"
    ends_machine = frozenset({"Preempt", "Terminate", "Reboot", "Redeploy"})

    def __init__(self, url: str = _LINK_LOCAL, *, wall_clock: Callable[[], datetime] | None = None) -> None:
        self._url, self._now = url, wall_clock or _utc_now
        self._machine: str | None = None

    def ask(self, http: httpx.Client) -> float | None:
        if self._machine is None:
            query = "?api-version=2021-02-01&format=text"
            name = http.get(
                f"{self._url}/metadata/instance/compute/name{query}", headers={"Metadata": "true"}
            )
            self._machine = name.raise_for_status().text.strip()
        response = http.get(
            f"{self._url}/metadata/scheduledevents?api-version=2020-07-01", headers={"Metadata": "true"}
        )
        ends = [
            self._seconds(event.not_before)
            for event in _parse(response, _Events).events
            if event.type in self.ends_machine and self._machine in event.resources
        ]
        return min(ends, default=None)

    def _seconds(self, not_before: str) -> float:
        """ "": it has begun."""
        if not not_before:
            return 0.0
        return max(0.0, (parsedate_to_datetime(not_before) - self._now()).total_seconds())


class Notices:
    """Asks those sources that are there. Once a notice has come, it is not taken back."""

    def __init__(self, sources: Sequence[NoticeSource], *, clock: Callable[[], float]) -> None:
        self._sources = dict.fromkeys(sources, 0)  # questions without an answer, one after the other
        self._clock = clock
        self._http = httpx.Client(timeout=_ANSWER_S, trust_env=False)
        self._ends_s: float | None = None

    def ends_in_s(self) -> float | None:
        """What is known; asks nobody."""
        return None if self._ends_s is None else max(0.0, self._ends_s - self._clock())

    def heard(self, ends_in_s: float) -> None:
        """Somebody has announced the end; the earliest counts."""
        ends_s = self._clock() + ends_in_s
        self._ends_s = ends_s if self._ends_s is None else min(self._ends_s, ends_s)

    def ask(self) -> None:
        """Each source once. Waits a second for each that does not answer; after some times it is asked no more."""
        for source in list(self._sources):
            try:
                ends_in_s = source.ask(self._http)
            except (httpx.HTTPError, ValueError) as error:
                self._silent(source, error)
                continue
            self._sources[source] = -(1 << 30)  # it exists: never given up
            if ends_in_s is not None and self._ends_s is None:
                log.warning("this machine will end", source=source.name, seconds=ends_in_s)
            if ends_in_s is not None:
                self.heard(ends_in_s)

    @property
    def any_sources(self) -> bool:
        return bool(self._sources)

    def close(self) -> None:
        self._http.close()

    def _silent(self, source: NoticeSource, error: Exception) -> None:
        self._sources[source] += 1
        if self._sources[source] >= _MOST_SILENCE:
            log.info("no announcements from there", source=source.name, error=repr(error))
            del self._sources[source]


def _parse(response: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.raise_for_status().content, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _utc_now() -> datetime:
    return datetime.now(UTC)
