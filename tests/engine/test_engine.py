"""The engine's promises: company changes nothing, nothing leaks, refusals are typed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoa.engine import Engine
from stoa.errors import ContextLengthExceeded, InvalidRequest, OutOfMemory, StoaError
from tests.engine.driving import Answer, assert_all_returned, collect, drain, make_engine, request
from tests.engine.tiny import adapter_folder, model_folder

PAGE = 2 * 2 * 2 * 16 * 16 * 4  # layers, k/v, heads, block, head_dim, fp32


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, length).tolist()


@pytest.fixture(scope="module")
def alone() -> Any:
    """Answers of each request in an engine of its own, in whole prompts, without a prefix cache."""
    engine = make_engine(model_folder("llama"), prefix_caching=False)
    cache: dict[Any, Answer] = {}

    def ask(text: int, length: int, which: int | None, count: int, **params: Any) -> Answer:
        key = (text, length, which, count, *sorted(params.items()))
        if key not in cache:
            adapter = None if which is None else adapter_folder("llama", which)
            asked = request("r", prompt(text, length), adapter=adapter, max_tokens=count, **params)
            cache[key] = drain(engine, [asked])["r", 0]
        return cache[key]

    return ask


schedules = st.fixed_dictionaries(
    {
        "pages": st.integers(22, 60),
        "chunk": st.sampled_from([1, 5, 16, 33, 128]),
        "seqs": st.integers(1, 9),
        "prefix": st.booleans(),
        "requests": st.lists(
            st.tuples(
                st.integers(0, 3),  # prompt seed: repeats share prefixes
                st.integers(1, 70),  # prompt length
                st.sampled_from([None, 0, 1, 2, 3, 4]),  # adapter
                st.integers(1, 20),  # output tokens
                st.integers(0, 12),  # arrives at this step
                st.one_of(st.none(), st.none(), st.integers(1, 10)),  # cancelled so many steps after
                st.sampled_from([0.0, 0.0, 0.8]),  # temperature
            ),
            min_size=1,
            max_size=10,
        ),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules)
def test_any_schedule_gives_each_its_own_answer_and_leaks_nothing(alone: Any, plan: dict[str, Any]) -> None:
    """Random arrivals, chunks, memory, adapters and cancellations: same tokens as alone, all pages return."""
    engine = make_engine(
        model_folder("llama"),
        pool_bytes=plan["pages"] * PAGE,
        max_batch_tokens=plan["chunk"],
        max_num_seqs=plan["seqs"],
        max_model_len=96,
        prefix_caching=plan["prefix"],
    )
    answers: dict[tuple[str, int], Answer] = {}
    cancelled: set[str] = set()
    step = 0
    try:
        while engine.has_requests or step <= 12:
            for i, (seed, length, which, count, at, gone, heat) in enumerate(plan["requests"]):
                if at == step:
                    adapter = None if which is None else adapter_folder("llama", which)
                    engine.add_request(
                        request(str(i), prompt(seed, length), adapter=adapter, max_tokens=count,
                                temperature=heat, seed=i)
                    )  # fmt: skip
                if gone is not None and at + gone == step:
                    engine.cancel(str(i))
                    cancelled.add(str(i))
            collect(engine.step(), answers)
            assert engine.blocks.num_held + engine.blocks.num_cached + engine.adapters.pages_held == (
                engine.pool.num_pages - engine.pool.num_free
            )
            if engine.idle and engine.has_requests:
                engine.wakeup.wait(0.01)
                engine.wakeup.clear()
            step += 1
            assert step < 3000, "no progress"
        for i, (seed, length, which, count, _, _, heat) in enumerate(plan["requests"]):
            expected = alone(seed, length, which, count, temperature=heat, seed=i).tokens
            got = answers.get((str(i), 0), Answer())
            if str(i) in cancelled:
                assert got.tokens == expected[: len(got.tokens)]
            else:
                assert got.tokens == expected
                assert got.finish == "length"
        assert_all_returned(engine)
    finally:
        engine.close()


def test_choices_share_the_prompt_and_differ_by_seed() -> None:
    """n choices compute the prompt once; each is what the same seed gives again."""
    engine = make_engine(model_folder("llama"))
    asked = request("a", prompt(1, 50), n=4, temperature=1.0, seed=7, max_tokens=12)
    first = drain(engine, [asked])
    again = drain(engine, [asked])
    assert len(first) == 4
    assert {k: v.tokens for k, v in first.items()} == {k: v.tokens for k, v in again.items()}
    assert len({tuple(v.tokens) for v in first.values()}) > 1
    assert first["a", 1].last is not None
    assert first["a", 1].last.cached_tokens == 48
    assert_all_returned(engine)


def test_prefix_cache_serves_the_same_project_and_adapter_only() -> None:
    """A repeated prompt is found again, but never across projects or adapters."""
    engine = make_engine(model_folder("llama"))
    adapter = adapter_folder("llama", 0)

    def cached(**kind: Any) -> int:
        last = drain(engine, [request("r", prompt(2, 64), **kind)])["r", 0].last
        assert last is not None
        return last.cached_tokens

    assert cached() == 0
    assert cached() == 48
    assert cached(project="other") == 0
    assert cached(adapter=adapter) == 0
    assert cached(adapter=adapter) == 48


def test_preemption_happens_and_is_counted() -> None:
    """Ten long sequences in a small pool finish, some of them after giving way."""
    engine = make_engine(model_folder("llama"), pool_bytes=16 * PAGE, max_model_len=128)
    answers = drain(engine, [request(str(i), prompt(i, 20), max_tokens=80) for i in range(10)])
    assert all(len(a.tokens) == 80 for a in answers.values())
    assert engine.stats().preemptions > 0
    assert_all_returned(engine)


def test_more_adapters_than_fit_page_in_and_out() -> None:
    """Five adapters through a pool that holds about two: all answered, some evicted."""
    engine = make_engine(model_folder("llama"), pool_bytes=22 * PAGE, max_model_len=64)
    for _ in range(2):
        asked = [request(str(w), prompt(w, 12), adapter=adapter_folder("llama", w)) for w in range(5)]
        assert len(drain(engine, asked)) == 5
    assert engine.stats().adapter_evictions > 0
    assert_all_returned(engine)


def test_a_cold_adapter_delays_only_its_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one adapter is being read, requests without it run to their end."""
    import threading

    gate = threading.Event()
    engine = make_engine(model_folder("llama"))
    read = engine.adapters.read
    monkeypatch.setattr(engine.adapters, "read", lambda ref: gate.wait(20) and read(ref))
    engine.add_request(request("cold", prompt(1, 8), adapter=adapter_folder("llama", 1)))
    engine.add_request(request("warm", prompt(2, 8)))
    answers: dict[tuple[str, int], Answer] = {}
    while ("warm", 0) not in answers or answers["warm", 0].finish is None:
        collect(engine.step(), answers)
    assert ("cold", 0) not in answers
    gate.set()
    assert drain(engine)["cold", 0].finish == "length"


def test_an_adapter_that_cannot_be_read_fails_its_requests_only(tmp_path: Any) -> None:
    """The request gets the error and its code; others go on."""
    engine = make_engine(model_folder("llama"))
    (tmp_path / "broken").mkdir()
    answers = drain(engine, [request("bad", [5], adapter=tmp_path / "broken"), request("good", [5])])
    assert answers["bad", 0].finish == "error"
    assert answers["bad", 0].last is not None
    assert answers["bad", 0].last.error_code == "invalid_adapter"
    assert answers["good", 0].finish == "length"
    assert_all_returned(engine)


def test_embedding_is_the_mean_hidden_state_whatever_the_chunks() -> None:
    """Pooling over chunks equals pooling at once."""
    vectors = []
    for chunk in (7, 512):
        engine = make_engine(model_folder("llama"), max_batch_tokens=chunk)
        asked = request("e", prompt(3, 45))
        last = drain(engine, [type(asked)(id="e", prompt_token_ids=asked.prompt_token_ids, pooling="mean")])
        event = last["e", 0].last
        assert event is not None
        vectors.append(np.asarray(event.embedding))
    assert vectors[0].shape == (64,)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"temperature": -1.0}, InvalidRequest, "temperature"),
        ({"temperature": float("nan")}, InvalidRequest, "temperature"),
        ({"top_p": 0.0}, InvalidRequest, "top_p"),
        ({"top_k": -2}, InvalidRequest, "top_k"),
        ({"min_p": 1.5}, InvalidRequest, "min_p"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"logprobs": 99}, InvalidRequest, "logprobs"),
        ({"repetition_penalty": 0.0}, InvalidRequest, "repetition_penalty"),
        ({"presence_penalty": 3.0}, InvalidRequest, "presence_penalty"),
        ({"logit_bias": {9999: 1.0}}, InvalidRequest, "logit_bias"),
        ({"stop_token_ids": (320,)}, InvalidRequest, "stop_token_ids"),
        ({"stop": ("x",)}, InvalidRequest, "stop"),
        ({"n": 0}, InvalidRequest, "n"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    change: dict[str, Any], error: type[StoaError], field: str
) -> None:
    """Each refusal names its field, and the engine holds nothing afterwards."""
    engine = shared_engine()
    with pytest.raises(error) as caught:
        engine.add_request(request("r", [5, 6], **change))
    assert caught.value.param == field
    assert not engine.has_requests


@pytest.mark.parametrize("tokens", [[], [320], [-1]])
def test_bad_prompts_are_refused(tokens: list[int]) -> None:
    """Empty prompts and ids outside the vocabulary."""
    with pytest.raises(InvalidRequest):
        shared_engine().add_request(request("r", tokens))


def test_a_prompt_over_the_context_is_refused() -> None:
    """The message gives both numbers."""
    with pytest.raises(ContextLengthExceeded, match=r"256.*300"):
        shared_engine().add_request(request("r", [5] * 300))


def test_a_pool_too_small_for_one_sequence_is_refused() -> None:
    """It says which settings to change."""
    with pytest.raises(OutOfMemory, match="pool_gib"):
        make_engine(model_folder("llama"), pool_bytes=2 * PAGE, max_model_len=128)


def test_sampling_parameters_shape_the_choice() -> None:
    """Bias forces a token, top_k 1 is greedy, penalties forbid repetition, min_tokens holds back the end."""
    engine = shared_engine()
    greedy = drain(engine, [request("r", [5, 6])])["r", 0].tokens
    assert drain(engine, [request("r", [5, 6], temperature=1.0, top_k=1)])["r", 0].tokens == greedy
    assert drain(engine, [request("r", [5, 6], temperature=1.0, top_p=1e-6)])["r", 0].tokens == greedy
    forced = drain(engine, [request("r", [5, 6], logit_bias={42: 100.0})])["r", 0]
    assert forced.tokens == [42] * 8
    once = drain(engine, [request("r", [5, 6], frequency_penalty=2.0, logit_bias={42: 6.0, 43: 5.0})])["r", 0]
    assert len(set(once.tokens)) > 1
    ended = drain(engine, [request("r", [5, 6], stop_token_ids=(greedy[0],))])["r", 0]
    assert (ended.finish, len(ended.tokens)) == ("stop", 1)
    held = drain(engine, [request("r", [5, 6], stop_token_ids=(greedy[0],), min_tokens=3)])["r", 0]
    assert len(held.tokens) >= 3


_shared: list[Engine] = []


def shared_engine() -> Engine:
    if not _shared:
        _shared.append(make_engine(model_folder("llama")))
    return _shared[0]


def test_a_sequence_that_outgrows_the_pool_beside_its_adapter_is_refused() -> None:
    """Each fits alone, both together never: the request ends with an error that names the setting."""
    engine = make_engine(model_folder("llama"), pool_bytes=18 * PAGE, max_model_len=128)
    asked = request("r", prompt(1, 60), adapter=adapter_folder("llama", 1), max_tokens=60)
    last = drain(engine, [asked])["r", 0].last
    assert last is not None
    assert last.error_code == "out_of_memory"
    assert "pool_gib" in (last.error or "")
    assert_all_returned(engine)


def test_an_adapter_whose_files_changed_is_not_served_under_its_old_id(tmp_path: Any) -> None:
    """Caches are keyed by content: a folder that holds something else now is refused."""
    engine = make_engine(model_folder("llama"))
    asked = request("r", [5], adapter=adapter_folder("llama", 0))
    other = str(adapter_folder("llama", 1))
    changed = msgspec.structs.replace(asked, adapter=msgspec.structs.replace(asked.adapter, path=other))
    last = drain(engine, [changed])["r", 0].last
    assert last is not None
    assert last.error_code == "invalid_adapter"


def test_choices_of_a_request_that_cannot_fit_fail_together() -> None:
    """The first is refused, its siblings go with it, and a neighbour in the same step is unharmed."""
    engine = make_engine(model_folder("llama"), pool_bytes=9 * PAGE, max_model_len=144, max_num_seqs=8)
    big = adapter_folder("llama", 1)
    hopeless = request("big", prompt(1, 140), adapter=big, n=4, max_tokens=4)
    answers = drain(engine, [hopeless, request("small", prompt(2, 10), max_tokens=4)])
    assert [a.finish for (id, _), a in answers.items() if id == "big"] == ["error"]
    assert len(answers["small", 0].tokens) == 4
    assert_all_returned(engine)


def test_an_embedding_is_the_same_after_preemption() -> None:
    """To the last bit, in chunks or whole, alone or crowded out in the middle."""
    asked = [msgspec.structs.replace(request(str(i), prompt(i, 60 + i)), pooling="mean") for i in range(6)]

    def vectors(engine: Engine) -> list[Any]:
        answers = drain(engine, [*asked, request("talk", prompt(9, 40), max_tokens=50)])
        return [answers[str(i), 0].last.embedding for i in range(6)]  # type: ignore[union-attr]

    whole = vectors(make_engine(model_folder("llama")))
    tight = make_engine(model_folder("llama"), pool_bytes=14 * PAGE, max_batch_tokens=24, max_model_len=96)
    assert vectors(tight) == whole
