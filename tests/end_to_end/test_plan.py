"""`stoa serve --plan`: two tenants, one of which may not leave the house, and a remote that remembers what it got."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from stoa.bench.gateway import free_port
from tests.end_to_end.test_tenants import STOA, ask, run

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
TOML = """
[[remote]]
name = "there"
url = "URL"
api = "chat"
dialect = "openai"
place = "cloud"
models = { "stoa-demo" = "theirs" }
max_model_len = 4096
"""


@dataclass
class Remote:
    """Answers every conversation with one word."""

    asked: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        return "\n".join(self.asked)

    def serve(self) -> ThreadingHTTPServer:
        remote = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                remote.asked.append(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                choice = {"index": 0, "delta": {"content": "elsewhere"}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1, "completion_tokens": 1}
                for event in ({"choices": [choice]}, {"choices": [], "usage": usage}):
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@dataclass
class House:
    """A running service. `follow` writes a plan for it."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    keys: dict[str, str]
    projects: dict[str, str]
    remote: Remote

    def client(self, who: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.keys[who], max_retries=0)

    def follow(self, remote_share: float) -> None:
        write_plan(self.home, self.projects["clinic"], remote_share)

    def engines(self) -> list[int]:
        found = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(line.split()[0]) for line in found.stdout.splitlines() if "stoa.fleet.worker" in line]


def write_plan(home: Path, clinic: str, remote_share: float) -> None:
    """Everybody else's requests go to the remote, as far as the share says."""
    weights = {
        "groups": ["others"],
        "places": {"office": [1 - remote_share]},
        "remotes": {"there": [remote_share]},
    }
    overflow = {"remote": "there", "wait_s": 0.001}  # for all groups: only residency is in the way
    plan = {
        "version": 1,
        "periods": [{"name": "always", "hours": [{"days": DAYS, "start": "00:00", "end": "24:00"}]}],
        "places": [{"name": "office"}, {"name": "cloud"}],
        "groups": [
            {"name": "clinics", "projects": [clinic], "places": ["office"]},
            {"name": "others", "projects": ["*"], "places": ["office", "cloud"]},
        ],
        "models": {
            "stoa-demo": {
                "targets": [
                    {"place": "office", "machine": "box", "market": "owned", "replicas": [1], "most": 1}
                ],
                "weights": [weights],
                "overflow": [overflow],
            }
        },
    }
    part = home / "plan.part"
    part.write_text(json.dumps(plan))
    part.replace(home / "plan.json")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home, remote = tmp_path_factory.mktemp("home"), Remote()
    server = remote.serve()
    projects = {name: run(home, "tenant", "add", name)["id"] for name in ("clinic", "shop")}
    keys = {name: run(home, "key", "add", name)["secret"] for name in projects}
    write_plan(home, projects["clinic"], 1.0)
    (home / "stoa.toml").write_text(TOML.replace("URL", f"http://127.0.0.1:{server.server_address[1]}/v1"))
    port = free_port()
    options = ["--plan", str(home / "plan.json"), "--zone", "office", "--config", str(home / "stoa.toml")]
    process = subprocess.Popen(
        [*STOA, "serve", "--port", str(port), "--home", str(home), *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert "ready" in process.stdout.readline()
    yield House(home, f"http://127.0.0.1:{port}/v1", process, keys, projects, remote)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    server.shutdown()
    server.server_close()


def until(condition: Callable[[], bool], wait_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def base(client: openai.OpenAI, word: str) -> str | None:
    return ask(client, "stoa-demo", word)


def test_each_goes_where_it_may(house: House) -> None:
    """The shop's request to the remote, as the plan has it; the clinic's stays, though overflow would let it go."""
    assert base(house.client("shop"), "pineapple") == "elsewhere"
    assert base(house.client("clinic"), "appendix") != "elsewhere"
    assert "pineapple" in house.remote.words
    assert "appendix" not in house.remote.words


def test_a_restricted_request_outlives_its_engine_at_home(house: House) -> None:
    """While the only engine is dead, it is held; then the next engine answers. The remote never hears of it."""
    before = house.engines()
    for number in before:
        os.kill(number, signal.SIGKILL)
    texts = [base(house.client("clinic"), f"appendix{i}") for i in range(3)]
    assert "elsewhere" not in texts
    assert house.engines() != before
    for number in house.engines():
        os.kill(number, signal.SIGKILL)
    assert base(house.client("shop"), "banana") == "elsewhere"
    assert "appendix" not in house.remote.words


def test_plans_change_while_it_serves(house: House) -> None:
    """A new one is followed within seconds, a broken one is not."""
    house.follow(0.0)
    until(lambda: base(house.client("shop"), "cherry") != "elsewhere")
    (house.home / "plan.json").write_text("{")
    time.sleep(1.5)
    assert base(house.client("shop"), "cherry") != "elsewhere"
    assert base(house.client("clinic"), "appendix") != "elsewhere"
    house.follow(1.0)
    until(lambda: base(house.client("shop"), "cherry") == "elsewhere")
    assert "appendix" not in house.remote.words


def test_without_a_right_plan_it_does_not_start(house: House) -> None:
    """The message names file and reason."""
    plan = house.home / "wrong.json"
    plan.write_text('{"version": 7}')
    done = subprocess.run(
        [sys.executable, "-m", "stoa.cli", "serve", "--port", "0", "--home", str(house.home), "--plan", str(plan)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "wrong.json: version is 7; accepted: 1" in done.stderr
