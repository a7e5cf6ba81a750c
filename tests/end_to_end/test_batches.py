"""A batch on a real service with the demo model, which is killed in the middle of it."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from stoa.bench.gateway import free_port

STOA = [sys.executable, "-m", "stoa.cli"]
WORDS = ["hello", "world", "stoa", "adapter", "batch", "night", "idle", "paper"]


class Place:
    """One home; a service that can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*STOA, "serve", "--port", str(self.port), "--home", str(self.home), "--max-num-seqs", "4"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        with self.process.stdout:
            assert "ready" in self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ended(self, batch_id: str) -> openai.types.Batch:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self.client.batches.retrieve(batch_id)
            if found.status not in ("validating", "in_progress", "finalizing", "cancelling"):
                return found
            time.sleep(0.1)
        raise AssertionError("the batch does not end")

    def send(self, requests: list[dict[str, Any]], endpoint: Any = "/v1/chat/completions") -> str:
        text = "\n".join(map(json.dumps, requests)).encode()
        file = self.client.files.create(file=("in.jsonl", text), purpose="batch")
        batch = self.client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        return batch.id

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("home"))
    yield found
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(20) == 0


def chat(custom_id: str, model: str, word: str) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": word}],
        "temperature": 0,
        "max_tokens": 12,
    }
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_a_batch_of_all_adapters_gives_each_its_own(place: Place) -> None:
    """Mixed in one file, each line is answered by the adapter that it names; embeddings too."""
    mixed = [chat(f"{model}-{word}", model, word) for word in WORDS for model in ("reverse", "upper")]
    batch = place.ended(place.send(mixed))
    assert (batch.status, batch.model) == ("completed", None)
    for line in place.lines(batch.output_file_id):
        model, word = line["custom_id"].split("-")
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == (word[::-1] if model == "reverse" else word.upper())
    vectors = [
        {
            "custom_id": word,
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "upper", "input": word},
        }
        for word in WORDS
    ]
    batch = place.ended(place.send(vectors, "/v1/embeddings"))
    assert batch.request_counts is not None
    assert batch.request_counts.completed == len(WORDS)


def test_a_killed_gateway_goes_on_where_it_was(place: Place) -> None:
    """kill -9 in the middle, twice: every line has one answer, and none has two."""
    count = 1500
    batch_id = place.send([chat(f"r{n}", "reverse", WORDS[n % 8]) for n in range(count)])
    for _ in range(2):
        deadline = time.monotonic() + 60
        before = place.client.batches.retrieve(batch_id).request_counts
        while time.monotonic() < deadline:
            now = place.client.batches.retrieve(batch_id).request_counts
            assert now is not None
            if now.completed > (before.completed if before else 0):
                break
            time.sleep(0.02)
        assert now.completed < count
        place.kill()
        connection = sqlite3.connect(place.home / "stoa.db")
        with connection:  # as if the dead one's lease had run out
            connection.execute("update batches set held_until = 0")
        connection.close()
        place.start()
    batch = place.ended(batch_id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": count, "completed": count, "failed": 0}
    found = place.lines(batch.output_file_id)
    assert [line["custom_id"] for line in found] == [f"r{n}" for n in range(count)]
    for n, line in enumerate(found):
        assert line["response"]["body"]["choices"][0]["message"]["content"] == WORDS[n % 8][::-1]


def test_interactive_requests_are_answered_beside_it(place: Place) -> None:
    """A batch that would keep the engine busy for long does not keep anybody waiting; it is cancelled at once."""
    requests = [chat(f"r{n}", "upper", WORDS[n % 8]) for n in range(6000)]
    batch_id = place.send(requests)
    for word in WORDS:
        answer = place.client.chat.completions.create(
            model="reverse", messages=[{"role": "user", "content": word}], temperature=0, max_tokens=12
        )
        assert answer.choices[0].message.content == word[::-1]
    assert place.client.batches.retrieve(batch_id).status in ("validating", "in_progress")
    place.client.batches.cancel(batch_id)
    batch = place.ended(batch_id)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.completed + batch.request_counts.failed == 6000
