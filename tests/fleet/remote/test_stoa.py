"""Another `stoa serve` as a remote: it answers with the very tokens that an engine here would choose."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from stoa.bench.gateway import free_port
from stoa.demo import ADAPTERS_DIR, BASE_DIR
from stoa.demo.tasks import TASKS, expected, sample_inputs
from stoa.engine import Engine
from stoa.engine.config import EngineConfig
from stoa.engine.request import AdapterRef, GenerationRequest, Grammar, SamplingParams
from stoa.engine.tokenizer import Tokenizer
from stoa.fleet.remote import Calls, RemoteConfig, RemoteReplica
from tests.fleet.remote.conftest import Ear

pytestmark = pytest.mark.slow
HOT = SamplingParams(max_tokens=24, temperature=1.8, seed=-3, ignore_eos=True)
TOKENIZER = Tokenizer(BASE_DIR)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    command = [sys.executable, "-m", "stoa.cli", "serve", "--port", str(port), "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    yield f"http://127.0.0.1:{port}/v1"
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    process.stdout.close()


@pytest.fixture
async def replica(url: str) -> AsyncIterator[RemoteReplica]:
    config = RemoteConfig(
        name="stoa", url=url, dialect="stoa", models={"base": "stoa-demo"}, load_adapters=True, probe_s=0.05
    )
    found = RemoteReplica(config, "base", calls=Calls(config), tokenizer=TOKENIZER)
    await found.start()
    async with asyncio.timeout(20):
        while not found.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield found
    await found.stop()


def prompt(word: str) -> list[int]:
    text = TOKENIZER.apply_chat_template([{"role": "user", "content": word}])
    return TOKENIZER.encode(text, add_special_tokens=False)


def ref(task: str) -> AdapterRef:
    return AdapterRef(id=hashlib.sha256(task.encode()).hexdigest(), path=str(ADAPTERS_DIR / task))


async def ask(replica: RemoteReplica, request: GenerationRequest) -> Ear:
    ear = Ear()
    replica.open(request, ear)
    async with asyncio.timeout(60):
        await ear.over.wait()
    assert not ear.losses
    return ear


def here(request: GenerationRequest) -> list[list[int]]:
    """What an engine in this process chooses."""
    engine = Engine(EngineConfig(model=str(BASE_DIR)))
    try:
        engine.add_request(request)
        found: list[list[int]] = [[] for _ in range(request.n)]
        while engine.has_requests:
            for event in engine.step():
                found[event.index] += event.token_ids
        return found
    finally:
        engine.close()


async def test_sampled_tokens_are_those_of_an_engine_here_and_go_on_from_anywhere(
    replica: RemoteReplica,
) -> None:
    """Each of three choices, from the prompt and from every place in the middle."""
    asked = GenerationRequest(id="whole", prompt_token_ids=prompt("planet"), params=HOT, n=3)
    ear = await ask(replica, asked)
    whole = [ear.tokens(i) for i in range(3)]
    assert whole == here(asked)
    assert len({tuple(t) for t in whole}) > 1
    for cut in range(1, HOT.max_tokens):
        so_far: list[list[int] | None] = [whole[0][:cut], None, whole[2][: HOT.max_tokens - cut]]
        rest = await ask(replica, msgspec.structs.replace(asked, id=f"from {cut}", so_far=so_far))
        for i, had in enumerate(so_far):
            assert had is None or had + rest.tokens(i) == whole[i]


async def test_adapters_arrive_by_its_load_api_and_answer_their_own_tasks(replica: RemoteReplica) -> None:
    """All of them and the base in one mix."""
    words, tasks = sample_inputs(60, seed=4), list(TASKS)
    jobs = [(tasks[i % len(tasks)], word) for i, word in enumerate(words)]
    ears = await asyncio.gather(
        *(
            ask(
                replica,
                GenerationRequest(
                    id=f"r{i}",
                    prompt_token_ids=prompt(word),
                    params=SamplingParams(max_tokens=20, temperature=0),
                    adapter=None if task is None else ref(task),
                ),
            )
            for i, (task, word) in enumerate(jobs)
        )
    )
    right = [ear.text() == expected(task, word) for ear, (task, word) in zip(ears, jobs, strict=True)]
    assert sum(right) >= 0.98 * len(right)


async def test_grammars_stops_and_logprobs_come_through(replica: RemoteReplica) -> None:
    """In vLLM's words, which it knows too."""

    async def text(params: SamplingParams) -> Ear:
        return await ask(replica, GenerationRequest(id="g", prompt_token_ids=prompt("planet"), params=params))

    lark = Grammar(kind="lark", source='start: "hi" /[0-9]{2}/')
    assert (await text(SamplingParams(max_tokens=20, grammar=lark))).text().startswith("hi")
    stopped = await text(SamplingParams(max_tokens=20, temperature=0, stop=("ane",)))
    assert (stopped.text(), stopped.ends[0].stop_reason) == ("pl", "ane")
    likely = await text(SamplingParams(max_tokens=20, temperature=0, logprobs=3))
    found = [p for e in likely.heard for p in e.logprobs or ()]
    assert [p.token_id for p in found] == likely.tokens()
    assert [p.top[0][0] for p in found] == likely.tokens()
