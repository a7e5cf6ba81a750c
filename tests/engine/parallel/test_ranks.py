"""Engines of two ranks, by gloo on the CPU, one thread each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from stoa.engine import AdapterRef, Engine, GenerationRequest
from stoa.engine.kernels import available_isas
from stoa.errors import EngineUnavailable, InvalidModel
from tests.engine.driving import (
    assert_all_returned,
    collect,
    drain,
    make_engine,
    ref,
    request,
)
from tests.engine.test_invariance import bits, prompts
from tests.engine.test_parity import PROMPT, reference
from tests.engine.tiny import LORAS, adapter_folder, model_folder

needs_kernels = pytest.mark.skipif(not available_isas(), reason="the C kernels were not built")


def two_ranks(name: str, **overrides: Any) -> Engine:
    return make_engine(model_folder(name), **({"tensor_parallel": 2, "threads": 2} | overrides))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(engine: Engine) -> list[int]:
    assert engine.leader is not None
    return [f.process.pid for f in engine.leader._followers]


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "isa"), [("llama-bias", None), ("llama-odd-vocab", None), ("qwen3", "torch")]
)
def test_every_adapter_in_one_batch_continues_like_peft(name: str, isa: str | None) -> None:
    """All adapters and the base together, prompts and decode rows mixed, give each what peft gives it alone."""
    which: list[int | None] = [None, *range(len(LORAS))]
    with closing(two_ranks(name, isa=isa, max_batch_tokens=48)) as engine:
        answers = drain(
            engine,
            [
                request(
                    str(w),
                    PROMPT[: 20 + i],
                    adapter=None if w is None else adapter_folder(name, w),
                    max_tokens=24,
                )
                for i, w in enumerate(which)
            ],
        )
        assert_all_returned(engine)
    for i, w in enumerate(which):
        assert answers[str(w), 0].tokens == reference(name, w, PROMPT[: 20 + i], 24)[1], w


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_company_and_preemption_change_no_bit(dtype: str) -> None:
    """Tokens and their twenty best log-probabilities are equal, not close."""

    def asked() -> list[GenerationRequest]:
        return [
            request(
                str(i),
                prompt,
                adapter=None if i == 2 else adapter_folder("qwen3", i % 5),
                max_tokens=20,
                logprobs=20,
            )
            for i, prompt in enumerate(prompts())
        ]

    page = two_pages("qwen3", dtype)
    settings: dict[str, Any] = {
        "dtype": dtype, "prefix_caching": False, "pool_bytes": 16 * page, "max_batch_tokens": 24, "max_model_len": 96,
    }  # fmt: skip
    with closing(two_ranks("qwen3", **settings)) as engine:
        alone = {k: v for r in asked() for k, v in bits(drain(engine, [r])).items()}
        before = engine.stats()
        assert bits(drain(engine, asked())) == alone
        after = engine.stats()
        gave_way = after.preemptions - before.preemptions + after.adapter_evictions - before.adapter_evictions
        assert gave_way > 0


def two_pages(name: str, dtype: str) -> int:
    """Bytes of a page of one of two ranks."""
    return make_engine(model_folder(name), dtype=dtype).layout.page_bytes // 2


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """With a pool that does not hold all adapters of `LORAS`."""
    with closing(two_ranks("llama", pool_bytes=160 << 10, max_model_len=64)) as engine:
        yield engine


def test_adapters_that_come_and_go_answer_as_themselves(engine: Engine) -> None:
    """Evicted from the pool and laid out again, on both ranks, several times."""
    one = make_engine(model_folder("llama"), threads=1)
    expected = drain(one, [request(str(w), PROMPT[:9], adapter=adapter_folder("llama", w)) for w in range(5)])
    order = np.random.default_rng(0).permutation(np.repeat(range(5), 4)).tolist()
    answers = drain(
        engine,
        [request(f"{at} {w}", PROMPT[:9], adapter=adapter_folder("llama", w)) for at, w in enumerate(order)],
    )
    for at, w in enumerate(order):
        assert answers[f"{at} {w}", 0].tokens == expected[str(w), 0].tokens
    assert engine.stats().adapter_evictions > 0
    assert_all_returned(engine)


def test_logprobs_and_embeddings_are_those_of_one_rank(engine: Engine) -> None:
    """Up to where sums are rounded."""
    one = make_engine(model_folder("llama"), threads=1)

    def asked() -> list[GenerationRequest]:
        adapter = adapter_folder("llama", 1)
        pooled = GenerationRequest(id="pooled", prompt_token_ids=PROMPT, pooling="mean", adapter=ref(adapter))
        return [request("said", PROMPT, adapter=adapter, max_tokens=8, logprobs=20, n=2), pooled]

    ours, theirs = drain(engine, asked()), drain(one, asked())
    for choice in range(2):
        mine, other = ours["said", choice], theirs["said", choice]
        assert mine.tokens == other.tokens
        for a, b in zip(mine.logprobs, other.logprobs, strict=True):
            assert [t for t, _ in a.top] == [t for t, _ in b.top]
            assert [v for _, v in a.top] == pytest.approx([v for _, v in b.top], abs=1e-4)
    mine, other = ours["pooled", 0], theirs["pooled", 0]
    assert mine.last is not None
    assert other.last is not None
    assert mine.last.embedding == pytest.approx(other.last.embedding, abs=1e-4)


def test_an_adapter_that_another_rank_cannot_read_fails_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is told why, others go on, no page is lost, and it works again when the files are back."""
    folder, away = tmp_path / "adapter", tmp_path / "away"
    shutil.copytree(adapter_folder("llama", 3), folder)
    named = AdapterRef(id=ref(adapter_folder("llama", 3)).id, path=str(folder))
    engine.forget(named.id)
    read = engine.adapters.read

    def read_and_lose(asked: AdapterRef) -> Any:
        pairs = read(asked)
        folder.rename(away)
        return pairs

    assert engine.leader is not None
    monkeypatch.setattr(engine.leader, "prefetch", lambda ref: None)
    monkeypatch.setattr(engine.adapters, "read", read_and_lose)
    lost = GenerationRequest(id="lost", prompt_token_ids=PROMPT[:5], adapter=named)
    other = request("other", PROMPT[:9], adapter=adapter_folder("llama", 0), max_tokens=30)
    answers = drain(engine, [lost, other])
    assert answers["other", 0].finish == "length"
    failed = answers["lost", 0].last
    assert failed is not None
    assert failed.finish_reason == "error"
    assert failed.error_code == "invalid_adapter"
    assert_all_returned(engine)
    away.rename(folder)
    again = GenerationRequest(id="again", prompt_token_ids=PROMPT[:5], adapter=named)
    assert drain(engine, [again])["again", 0].finish in ("length", "stop")
    assert_all_returned(engine)


def test_a_cold_adapter_holds_up_nobody_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another rank still lays it out, steps go on, and its pages are nobody's."""
    assert engine.leader is not None
    go, lay_out = threading.Event(), engine.leader.lay_out

    def slow(ref: AdapterRef, first_page: int) -> Any:
        assert go.wait(10)
        return lay_out(ref, first_page)

    monkeypatch.setattr(engine.adapters, "elsewhere", slow)
    engine.forget(ref(adapter_folder("llama", 2)).id)
    engine.add_request(request("cold", PROMPT[:5], adapter=adapter_folder("llama", 2), max_tokens=4))
    engine.add_request(request("warm", PROMPT[:5], max_tokens=12))
    answers: dict[tuple[str, int], Any] = {}
    while ("warm", 0) not in answers or answers["warm", 0].finish is None:
        collect(engine.step(), answers)
    assert ("cold", 0) not in answers
    go.set()
    drained = drain(engine)
    assert drained["cold", 0].finish == "length"


@pytest.mark.parametrize("when", ["idle", "in a step"])
def test_a_rank_that_dies_ends_the_engine(when: str) -> None:
    """With a typed error within seconds, though nobody asked for anything; then no process is left."""
    with closing(two_ranks("llama", isa="torch")) as engine:
        (victim,) = pids(engine)
        if when == "idle":
            os.kill(victim, signal.SIGKILL)
        else:
            engine.add_request(request("r", PROMPT, max_tokens=200))
            threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        until(lambda: engine.has_requests)
        started = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"rank 1 .* \(exit code -9\)"):
            drain(engine)
        assert time.monotonic() < started + 5
        with pytest.raises(EngineUnavailable):
            engine.step()
    assert not alive(victim)


def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    """Weights that only it reads are damaged."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, -1] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    before = children()
    with pytest.raises(InvalidModel, match=r"down_proj.weight' holds NaN"):
        make_engine(folder, tensor_parallel=2, threads=2)
    assert children() == before


def children() -> list[int]:
    """Followers that this process has."""
    own = Path(f"/proc/{os.getpid()}/task")
    found = [int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()]
    return [p for p in found if alive(p) and b"parallel.follower" in Path(f"/proc/{p}/cmdline").read_bytes()]


LEADER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it
from tests.engine.driving import make_engine
from pathlib import Path
engine = make_engine(Path(sys.argv[1]), tensor_parallel=2, threads=2)
print(engine.leader._followers[0].process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_other_ranks_end_with_the_first(number: signal.Signals) -> None:
    """When it is killed, and when a terminal's Ctrl-C meets them all."""
    with subprocess.Popen(
        [sys.executable, "-c", LEADER, str(model_folder("llama"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
        cwd=Path(__file__).parents[3],
    ) as leader:
        assert leader.stdout is not None
        follower = int(leader.stdout.readline())
        assert alive(follower)
        if number == signal.SIGINT:
            os.killpg(leader.pid, number)
        else:
            leader.kill()
        leader.wait(10)
    until(lambda: not alive(follower))
