"""Two tenants and an administrator on one service, as they would meet it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from stoa.bench.gateway import free_port
from stoa.demo import ADAPTERS_DIR

STOA = [sys.executable, "-m", "stoa.cli"]


def run(home: Path, *words: str) -> Any:
    done = subprocess.run(
        [*STOA, *words, "--home", str(home), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class Place:
    """A running service, and what its administrator has handed out."""

    home: Path
    port: int
    process: subprocess.Popen[str]
    keys: dict[str, str]  # by tenant; "admin"
    projects: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, who: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.keys[who], max_retries=0)

    @property
    def admin(self) -> Any:
        client = openai.OpenAI(
            base_url=self.url, api_key="none", admin_api_key=self.keys["admin"], max_retries=0
        )
        return client.admin.organization

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.home / "stoa.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


def serve(home: Path) -> tuple[int, subprocess.Popen[str]]:
    port = free_port()
    process = subprocess.Popen(
        [*STOA, "serve", "--port", str(port), "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert "ready" in process.stdout.readline()
    return port, process


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    projects = {name: run(home, "tenant", "add", name)["id"] for name in ("acme", "globex")}
    keys = {name: run(home, "key", "add", name)["secret"] for name in projects}
    keys["admin"] = run(home, "key", "add", "--admin")["secret"]
    port, process = serve(home)
    found = Place(home, port, process, keys, projects)
    yield found
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(20) == 0


def ask(client: openai.OpenAI, model: str = "reverse", word: str = "hello") -> str | None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": word}], temperature=0, max_tokens=12
    )
    return answer.choices[0].message.content


def test_strangers_stay_outside(place: Place) -> None:
    """With keys made, nobody gets in without one; probes stay open."""
    with httpx.Client(base_url=f"http://127.0.0.1:{place.port}") as http:
        for path in ("/v1/models", "/v1/organization/projects", "/v1/organization/costs?start_time=0"):
            assert http.get(path).status_code == 401
        assert http.get("/ready").status_code == 200
    assert ask(place.client("acme")) == "olleh"
    with pytest.raises(openai.PermissionDeniedError):
        list(
            openai.OpenAI(
                base_url=place.url, api_key="x", admin_api_key=place.keys["acme"]
            ).admin.organization.projects.list()
        )
    with pytest.raises(openai.PermissionDeniedError):
        place.client("admin").models.list()


def test_a_tenants_adapter_is_its_own(place: Place) -> None:
    """Sent over HTTP, used by its name, absent for others, gone when deleted."""
    folder = ADAPTERS_DIR / "reverse"
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    headers = {"Authorization": f"Bearer {place.keys['acme']}"}
    sent = httpx.post(f"{place.url}/adapters", data={"name": "mine"}, files=files, headers=headers)
    assert (sent.status_code, sent.json()["id"]) == (201, "mine")
    again = httpx.post(f"{place.url}/adapters", data={"name": "mine"}, files=files, headers=headers)
    assert again.json()["error"]["code"] == "adapter_exists"
    assert ask(place.client("acme"), "mine") == "olleh"
    assert "mine" in [m.id for m in place.client("acme").models.list()]
    assert "mine" not in [m.id for m in place.client("globex").models.list()]
    for act in (
        lambda c: ask(c, "mine"),
        lambda c: c.models.retrieve("mine"),
        lambda c: c.models.delete("mine"),
        lambda c: c.embeddings.create(model="mine", input="x"),
    ):
        with pytest.raises(openai.NotFoundError):
            act(place.client("globex"))
    for path in ("load_lora_adapter", "unload_lora_adapter"):
        body = {"lora_name": "x", "lora_path": "/etc"} if path.startswith("load") else {"lora_name": "mine"}
        assert httpx.post(f"{place.url}/{path}", json=body, headers=headers).status_code == 403
    assert place.client("acme").models.delete("mine").deleted
    with pytest.raises(openai.NotFoundError):
        ask(place.client("acme"), "mine")


def test_limits_are_told_and_kept(place: Place) -> None:
    """Headers say what is left; the fourth request of three a minute is refused, with a time to come back."""
    account = place.admin.projects.service_accounts.create(place.projects["globex"], name="limited")
    limit = place.admin.projects.rate_limits.list_rate_limits(place.projects["globex"]).data[0]
    place.admin.projects.rate_limits.update_rate_limit(
        limit.id,
        project_id=place.projects["globex"],
        max_requests_per_1_minute=3,
        max_tokens_per_1_minute=100_000,
    )
    client = openai.OpenAI(base_url=place.url, api_key=account.api_key.value, max_retries=0)
    remaining = []
    for _ in range(3):
        raw = client.chat.completions.with_raw_response.create(
            model="upper", messages=[{"role": "user", "content": "abc"}], max_tokens=5
        )
        remaining.append(int(raw.headers["x-ratelimit-remaining-requests"]))
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
    assert remaining == [2, 1, 0]
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "upper")
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert ask(place.client("acme"), "upper", "abc") == "ABC"


def test_a_spent_budget_ends_it(place: Place) -> None:
    """insufficient_quota, which no client tries again; an administrator raises it."""
    project = place.admin.projects.create(name="poor")
    key = place.admin.projects.service_accounts.create(project.id, name="k").api_key.value
    run(place.home, "tenant", "set", project.id, "--budget", "0.0000001")
    client = openai.OpenAI(base_url=place.url, api_key=key, max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)
    assert refused.value.code == "insufficient_quota"
    place.admin.projects.spend_limit.update(
        project.id, currency="USD", interval="month", threshold_amount=100
    )
    assert ask(client) == "olleh"


def test_use_and_costs_add_up(place: Place) -> None:
    """Each request is one row; the ledger's entries sum to the price of the time; finance sees both."""
    count = "select count(*) from usage where model = 'caesar'"
    for _ in range(5):
        ask(place.client("acme"), "caesar")
    deadline = time.monotonic() + 10
    while place.rows(count) != [(5,)] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert place.rows(count) == [(5,)]
    page = place.admin.usage.completions(start_time=int(time.time()) - 3600, group_by=["project_id"])
    results = {r.project_id: r for bucket in page.data for r in bucket.results}
    assert results[place.projects["acme"]].num_model_requests >= 5
    own = httpx.get(
        f"{place.url}/organization/usage/completions",
        params={"start_time": int(time.time()) - 3600, "group_by": "project_id"},
        headers={"Authorization": f"Bearer {place.keys['acme']}"},
    ).json()
    assert {r["project_id"] for b in own["data"] for r in b["results"]} == {place.projects["acme"]}
    intervals = place.rows("select sum(total_nanos), min(start_ns), max(end_ns) from ledger_intervals")[0]
    assert place.rows("select sum(amount_nanos) from ledger_entries")[0][0] == intervals[0]
    rate = place.rows("select amount_nanos from prices where item = 'machine:default'")[0][0]
    assert intervals[0] == rate * (intervals[2] - intervals[1]) // (3600 * 10**9)
    (day,) = place.admin.usage.costs(start_time=int(time.time()) - 3600, limit=1).data
    assert day.results[0].amount.value > 0


def test_a_clean_stop_loses_nothing_and_a_kill_a_second(place: Place) -> None:
    """After SIGTERM every answered request is on record; after kill -9 those older than a second are, once."""
    count = "select count(*) from usage where model = 'stars'"
    for _ in range(4):
        ask(place.client("acme"), "stars")
    place.process.send_signal(signal.SIGTERM)
    assert place.process.wait(20) == 0
    assert place.rows(count) == [(4,)]
    assert place.rows("select count(*) from ledger_intervals where number < 0") == [(0,)]
    place.port, place.process = serve(place.home)
    for _ in range(4):
        ask(place.client("acme"), "stars")
    time.sleep(1.2)
    os.kill(place.process.pid, signal.SIGKILL)
    place.process.wait()
    place.port, place.process = serve(place.home)
    assert place.rows(count) == [(8,)]
    assert place.rows("select count(distinct request_id) - count(*) from usage") == [(0,)]


def test_every_act_is_on_record(place: Place) -> None:
    """Who did what, newest first."""
    types = [entry.type for entry in place.admin.audit_logs.list(limit=50)]
    assert {"project.created", "api_key.created", "rate_limit.updated", "service_account.created"} <= set(
        types
    )
