"""`stoa serve` as a person starts it, asked by the official client."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from stoa.bench.gateway import free_port
from stoa.demo import ADAPTERS_DIR
from stoa.demo.tasks import TASKS, expected, sample_inputs


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    command = [sys.executable, "-m", "stoa.cli", "serve", "--port", str(port), "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert "ready" in lines[0]
    curl = re.search(r"curl .*", lines[3])
    assert curl is not None
    (home / "curl").write_text(curl[0])
    os.environ["STOA_TEST_CURL"] = str(home / "curl")
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()


def test_each_adapter_answers_its_own_task_in_one_mix(url: str) -> None:
    """Two hundred requests at once over all adapters and the base: every answer is its own adapter's."""

    async def ask_all() -> list[tuple[str | None, str, str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

            async def ask(task: str | None, word: str) -> tuple[str | None, str, str | None]:
                answer = await client.chat.completions.create(
                    model=task or "stoa-demo",
                    messages=[{"role": "user", "content": word}],
                    temperature=0,
                    max_tokens=20,
                )
                return task, word, answer.choices[0].message.content

            words = sample_inputs(200, seed=9)
            return await asyncio.gather(*(ask(list(TASKS)[i % len(TASKS)], w) for i, w in enumerate(words)))

    answers = asyncio.run(ask_all())
    right = [text == expected(task, word) for task, word, text in answers]
    assert sum(right) >= 0.98 * len(right)


def test_the_printed_curl_line_works_as_pasted(url: str) -> None:
    """Run by a shell, it answers."""
    line = Path(os.environ["STOA_TEST_CURL"]).read_text()
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert '"olleh"' in done.stdout


def test_an_adapter_can_be_loaded_and_unloaded_while_serving(url: str) -> None:
    """By the endpoints that vLLM has, through the command line."""
    command = [sys.executable, "-m", "stoa.cli", "adapter"]

    def run(*words: str) -> str:
        return subprocess.run(
            [*command, *words, "--url", url], capture_output=True, text=True, check=True
        ).stdout

    assert "added successfully" in run("add", "mirror", str(ADAPTERS_DIR / "reverse"))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = client.completions.create(
            model="mirror", prompt="<|bos|><|user|>planet<|end|><|assistant|>", temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == "tenalp"
        assert "removed successfully" in run("rm", "mirror")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="mirror", prompt="x")
