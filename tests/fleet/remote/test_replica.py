"""A remote answers like an engine, or the request can go elsewhere; whatever the remote does."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import msgspec
import pytest

from stoa.engine.request import Grammar
from stoa.errors import EngineUnavailable
from tests.fleet.remote.conftest import Bench, Ear, MakeBench, request
from tests.fleet.remote.fake_remote import PROMPT, FakeRemote, Wire, cut, error, hang, raw, refuse

TEXT = "Hello world"


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# -- answers


async def test_an_answer_has_tokens_text_and_use(bench: Bench) -> None:
    """The events are those of an engine, the last one with what the remote counted."""
    ear = await bench.ask(request())
    assert ear.text() == TEXT
    assert bench.remote.tokenizer.decode(ear.tokens()) == TEXT
    (end,) = ear.ends
    assert (end.finish_reason, end.prompt_tokens, end.cached_tokens, end.completion_tokens) == (
        "stop",
        4,
        2,
        11,
    )
    assert ear.usage is not None
    assert (ear.usage.outcome, ear.usage.prompt_tokens, ear.usage.completion_tokens) == ("stop", 4, 11)
    assert "Authorization: Bearer sesame" in bench.remote.headers[-1]


async def test_each_token_comes_by_itself(bench: Bench) -> None:
    """As from an engine, with the text that it completes and its logprobs, however many the remote sends at once."""
    ear = await bench.ask(request(params={"logprobs": 2, "stop": ("wor",)}))
    assert [len(e.token_ids) for e in ear.heard] == [1] * len("Hello wor") + [0]
    assert [e.text for e in ear.heard] == ["H", "e", "l", "l", "o", " ", "", "", "", ""]
    assert [[p.token_id for p in e.logprobs or ()] for e in ear.heard] == [e.token_ids for e in ear.heard]


@pytest.mark.parametrize("wrong", [-5_000_000, 2**31, 2**64 - 1, 1.5, "7", True, None])
async def test_use_that_is_no_count_is_counted_here(wrong: object, make: MakeBench) -> None:
    """Money and records go by it."""
    bench: Bench = await make(fake={"knows_ids": False}, input_price=1000, output_price=1000)
    usage = {
        "prompt_tokens": wrong,
        "completion_tokens": wrong,
        "prompt_tokens_details": {"cached_tokens": wrong},
    }
    chunks = [{"choices": [{"text": "Hello wo", "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    bench.remote.script.append(raw(*(b"data: %s\n\n" % msgspec.json.encode(chunk) for chunk in chunks)))
    ear = await bench.ask(request())
    assert ear.usage is not None
    assert (ear.usage.prompt_tokens, ear.usage.cached_tokens, ear.usage.completion_tokens) == (4, 0, 2)
    assert ear.nanos == 6_000_000
    assert bench.bought[0][1].estimated


async def test_all_of_n_choices_come_in_one_question(bench: Bench) -> None:
    """Each has its own text; the use counts them together."""
    ear = await bench.ask(request(n=3))
    assert [ear.text(i) for i in range(3)] == [TEXT] * 3
    assert sum(e.completion_tokens for e in ear.ends) == 33
    assert [b["n"] for b in bench.remote.bodies] == [3]


async def test_an_answer_goes_on_behind_what_it_had_elsewhere(bench: Bench) -> None:
    """Tokens from elsewhere follow the prompt, one question for each choice that is open; text comes without a seam."""
    ids = bench.remote.tokenizer.encode(TEXT)
    ear = await bench.ask(request(n=3, so_far=[ids[:4], None, ids[:6]], params={"seed": 5}))
    assert (ear.text(0), ear.text(1), ear.text(2)) == ("o world", "", "world")
    assert {e.index: e.completion_tokens for e in ear.ends} == {0: 11, 2: 11}
    bodies = sorted(bench.remote.bodies, key=lambda b: len(b["prompt"]))
    assert [b["prompt"] for b in bodies] == [PROMPT + ids[:4], PROMPT + ids[:6]]
    assert [(b["max_tokens"], b["seed"]) for b in bodies] == [(96, 5), (94, 7)]


async def test_a_character_that_is_cut_between_two_replicas_comes_whole(make: MakeBench) -> None:
    """Half of its bytes came from elsewhere, and were not shown there."""
    bench: Bench = await make(fake={"text": "café!"})
    ids = bench.remote.tokenizer.encode("café!")
    ear = await bench.ask(request(so_far=[ids[:4]]))
    assert ear.text() == "é!"


async def test_a_stop_string_across_the_seam_ends_the_answer(bench: Bench) -> None:
    """The remote cannot see it: it began elsewhere."""
    ids = bench.remote.tokenizer.encode(TEXT)
    ear = await bench.ask(request(so_far=[ids[:5]], params={"stop": ("o wo",)}))
    assert (ear.text(), ear.ends[0].finish_reason, ear.ends[0].stop_reason) == ("", "stop", "o wo")


async def test_no_more_tokens_come_than_were_asked_for(bench: Bench) -> None:
    """Also from a remote that does not count."""
    parts = [
        b'data: {"choices":[{"index":0,"text":"aaaa","token_ids":[65,65,65,65]}]}\n\n',
        b'data: {"choices":[{"index":0,"text":"aaaa","token_ids":[65,65,65,65]}]}\n\n',
    ]
    bench.remote.script.append(raw(*parts))
    ear = await bench.ask(request(params={"max_tokens": 6}))
    assert (len(ear.tokens()), ear.ends[0].finish_reason) == (6, "length")


async def test_logprobs_name_tokens_by_id(bench: Bench) -> None:
    """The k most likely, most likely first."""
    ear = await bench.ask(request(params={"logprobs": 2}))
    found = [p for e in ear.heard for p in e.logprobs or ()]
    assert [p.token_id for p in found] == ear.tokens()
    assert found[0].top == [(7, -0.25), (found[0].token_id, -0.5)]


async def test_a_remote_that_sends_text_only_is_read_as_text(make: MakeBench) -> None:
    """Nobody can go on from it, so a break after the first text is the answer's end."""
    bench: Bench = await make(fake={"knows_ids": False})
    ear = await bench.ask(request())
    assert (ear.text(), ear.tokens(), ear.ends[0].completion_tokens) == (TEXT, [], 11)
    bench.remote.script.append(cut(2))
    ear = await bench.ask(request("again"))
    assert (ear.losses, ear.ends[0].finish_reason, ear.ends[0].error_code) == (
        0,
        "error",
        "engine_unavailable",
    )
    assert ear.usage is not None
    assert ear.usage.outcome == "error"


async def test_an_answer_without_use_and_without_done_is_complete(make: MakeBench) -> None:
    """What is not told is counted here."""
    bench: Bench = await make(fake={"says_usage": False})
    ear = await bench.ask(request())
    assert (ear.text(), ear.ends[0].completion_tokens, ear.ends[0].cached_tokens) == (TEXT, 11, 0)
    ids = b",".join(b"%d" % i for i in PROMPT)
    bench.remote.script.append(
        raw(b'data: {"choices":[{"token_ids":[' + ids + b'],"finish_reason":"stop"}]}')
    )
    assert (await bench.ask(request("again"))).tokens() == PROMPT


async def test_a_filter_that_ends_an_answer_is_an_error(bench: Bench) -> None:
    """It is not taken for a whole answer."""
    bench.remote.script.append(raw(b'data: {"choices":[{"finish_reason":"content_filter"}]}\n\n'))
    ear = await bench.ask(request())
    assert (ear.ends[0].finish_reason, ear.ends[0].error_code) == ("error", "content_filter")


# -- faults


async def gzipped(fake: FakeRemote, body: dict[str, Any], wire: Wire) -> None:
    """A megabyte in a few bytes, twice."""
    wire.head(Content_Encoding="gzip, gzip")
    await wire.send(gzip.compress(gzip.compress(b"\n" * (1 << 20))))
    await wire.end()


EVENT = b'data: {"choices":[{"index":0,"text":"H","token_ids":[39]}]}\n\n'
FAULTS: dict[str, Any] = {
    "429": error(429, Retry_After="0"),
    "500": error(500),
    "503 with words that are no JSON": raw(b"<html>", kind="text/html"),
    "an empty answer": raw(),
    "a redirect": error(307, Location="http://127.0.0.1:1/v1/completions"),
    "the door": error(401),
    "closed at once": refuse,
    "cut before the first token": cut(0),
    "cut in the middle": cut(2),
    "hangs before the head": hang(),
    "hangs before the first token": hang(0),
    "hangs in the middle": hang(2),
    "says nothing but that it is there": hang(2, b": still here\n\n"),
    "says empty chunks": hang(1, b'data: {"choices":[{"index":0,"text":""}]}\n\n'),
    "no JSON": raw(EVENT, b"data: {{{\n\n"),
    "other JSON": raw(EVENT, b'data: {"choices": 7}\n\n'),
    "not UTF-8": raw(EVENT, b"data: \xff\xfe\n\n"),
    "an encoded answer": gzipped,
    "a line without end": raw(EVENT, b"data: " + b"x" * (5 << 20)),
    "a flood of choices": raw(b'data: {"choices":[' + b"{}," * 1000 + b'{"text":"a"}]}\n\n'),
    "ends without a finish": raw(EVENT, b"data: [DONE]\n\n"),
    "a choice that nobody asked for": raw(b'data: {"choices":[{"index":5,"text":"a","token_ids":[65]}]}\n\n'),
    "an error in the stream": raw(EVENT, b'data: {"error":{"message":"out of memory","code":500}}\n\n'),
    "an error event": raw(EVENT, b'event: error\ndata: {"error":{"message":"stopped"}}\n\n'),
    "gives it up": raw(EVENT, b'data: {"choices":[{"index":0,"finish_reason":"abort"}]}\n\n'),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_after_any_fault_the_request_can_go_on_elsewhere(name: str, make: MakeBench) -> None:
    """It is lost once, the tokens that were handed on are right, and the next request is answered."""
    bench: Bench = await make(first_token_s=0.15, progress_s=0.15)
    bench.remote.script.append(FAULTS[name])
    ear = await bench.ask(request())
    assert (ear.losses, ear.usage, ear.ends) == (1, None, [])
    assert TEXT.startswith(ear.text())
    assert bench.remote.tokenizer.decode(ear.tokens()) == ear.text()
    assert (await bench.ask(request("next"))).text() == TEXT


async def test_a_flood_leaves_the_event_loop_to_others(bench: Bench) -> None:
    """While it is read, and before the request is lost, others have many turns."""
    bench.remote.script.append(raw(b"\n" * (1 << 20)))
    asked = asyncio.create_task(bench.ask(request()))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await asked).losses == 1
    assert turns > 200


ECHO = {"error": {"message": "x" * 80 + " Authorization: Bearer sesame; " + "y" * 300, "code": 500}}


@pytest.mark.parametrize(
    "behaviour",
    [
        error(401, ECHO["error"]["message"]),
        error(500, {"headers": ["Bearer sesame"]}),
        raw(b"data: " + msgspec.json.encode(ECHO) + b"\n\n"),
        raw(b"Bearer sesame", kind="sesame/sesame"),
    ],
)
async def test_a_key_that_a_remote_repeats_is_not_shown(
    behaviour: Any, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """In no line of the log."""
    bench.remote.script.append(behaviour)
    assert (await bench.ask(request())).losses == 1
    printed = capsys.readouterr().out
    assert "did not answer a request" in printed
    assert "sesame" not in printed


async def test_a_client_gets_few_of_a_remotes_words(make: MakeBench) -> None:
    """And no key among them, when an answer breaks off of which nobody knows the tokens."""
    bench: Bench = await make(fake={"knows_ids": False})
    chunk = {"choices": [{"text": "Hello"}]}
    bench.remote.script.append(raw(*(b"data: %s\n\n" % msgspec.json.encode(c) for c in (chunk, ECHO))))
    told = (await bench.ask(request())).ends[0].error
    assert told is not None
    assert "sesame" not in told
    assert len(told) < 160


async def test_nobody_there_is_a_loss_too(make: MakeBench) -> None:
    """A closed port loses the request at once, and a few of them open the breaker."""
    bench: Bench = await make(url="http://127.0.0.1:1/v1")
    for i in range(5):
        assert (await bench.ask(request(str(i)))).losses == 1
    assert not bench.replica.ready


async def test_failures_open_the_breaker_and_it_closes_again(make: MakeBench) -> None:
    """While it is open nothing is sent; afterwards single trials are, and `ready` is told to the fleet."""
    clock = [0.0]
    bench: Bench = await make(replica={"clock": lambda: clock[0]})
    told: list[bool] = []
    bench.replica.changed = lambda: told.append(bench.replica.ready)
    bench.remote.script.extend([error(500)] * 5)
    for i in range(5):
        await bench.ask(request(str(i)))
    sent = len(bench.remote.asked)
    assert (await bench.ask(request("early"))).losses == 1
    assert (len(bench.remote.asked), bench.replica.ready, told[-1]) == (sent, False, False)
    clock[0] += 2.0
    assert bench.replica.ready
    assert [(await bench.ask(request(f"late {i}"))).text() for i in range(3)] == [TEXT] * 3
    assert told[-1]


async def test_a_remote_that_asks_for_quiet_gets_it(make: MakeBench) -> None:
    """As long as Retry-After says, without counting as a failure."""
    clock = [0.0]
    bench: Bench = await make(replica={"clock": lambda: clock[0]})
    bench.remote.script.append(error(429, Retry_After="30"))
    await bench.ask(request())
    clock[0] = 29.9
    assert not bench.replica.ready
    clock[0] = 30.0
    assert bench.replica.ready


async def test_what_the_remote_finds_malformed_is_no_fault_of_its(bench: Bench) -> None:
    """Any number of refusals leaves it ready."""
    bench.remote.script.extend([error(400)] * 20)
    for i in range(20):
        assert (await bench.ask(request(str(i)))).losses == 1
    assert bench.replica.ready


# -- cancelling, stopping


async def test_a_cancelled_request_ends_at_the_remote_and_is_counted(make: MakeBench) -> None:
    """The connection is closed; what had come is paid for by estimate."""
    bench: Bench = await make(input_price=1000, output_price=1000)
    bench.remote.script.append(hang(2))
    ear = Ear()
    bench.replica.open(request(), ear)
    await ear.some.wait()
    await until(lambda: len(ear.tokens()) == 6)
    bench.replica.cancel("r")
    await ear.over.wait()
    assert ear.usage is not None
    assert (ear.usage.outcome, ear.usage.completion_tokens, ear.nanos) == ("cancelled", 6, 10_000_000)
    ((_, bought),) = bench.bought
    assert (bought.estimated, bought.parts.total_nanos) == (True, 10_000_000)


async def test_a_request_cancelled_before_it_began_is_over_too(bench: Bench) -> None:
    """Its receiver hears that it used nothing."""
    ear = Ear()
    bench.replica.open(request(), ear)
    bench.replica.cancel("r")
    bench.replica.cancel("unknown")
    await ear.over.wait()
    assert ear.usage is not None
    assert (ear.usage.outcome, ear.usage.prompt_tokens, bench.remote.bodies) == ("cancelled", 0, [])


async def test_stopping_ends_what_runs_and_takes_nothing_more(bench: Bench) -> None:
    """Every receiver hears the end."""
    bench.remote.script.append(hang(1))
    ear, late = Ear(), Ear()
    bench.replica.open(request(), ear)
    await ear.some.wait()
    await bench.replica.stop()
    bench.replica.open(request("late"), late)
    assert (ear.over.is_set(), late.losses, bench.replica.ready) == (True, 1, False)


# -- what it is


async def test_it_is_ready_once_it_has_said_what_it_serves(make: MakeBench) -> None:
    """It is asked until it names the model; then its context is known."""
    bench: Bench = await make(fake={"models": []}, max_model_len=0)
    await until(lambda: bench.replica.notice)
    assert not bench.replica.ready
    with pytest.raises(EngineUnavailable):
        await bench.replica.stats()
    bench.remote.models.append({"id": "their-base", "max_model_len": 77})
    await until(lambda: bench.replica.ready)
    assert (bench.replica.max_model_len, bench.replica.notice) == (77, "")
    assert bench.replica.unfit(request()) == "its context is 77 tokens"


async def test_stats_tell_what_runs(bench: Bench) -> None:
    """Requests without a first token wait."""
    bench.remote.script.extend([hang(1), hang(0)])
    ears = [Ear(), Ear()]
    bench.replica.open(request("a"), ears[0])
    await ears[0].some.wait()
    bench.replica.open(request("b"), ears[1])
    stats = await bench.replica.stats()
    assert (stats.running, stats.waiting) == (1, 1)


async def test_conversations_go_to_remotes_that_render_them(make: MakeBench) -> None:
    """The client's own messages and format are sent; use is the remote's own count."""
    bench: Bench = await make(api="chat", dialect="openai")
    source = (
        b'{"model":"our-base","messages":[{"role":"user","content":"hi"}],'
        b'"response_format":{"type":"json_object"}}'
    )
    asked = request(params={"grammar": Grammar(kind="json_object"), "stop": ("\n",)})
    if "source" not in asked.__struct_fields__:
        asked_type = msgspec.defstruct(
            "Asked", [("source", bytes, b"")], bases=(type(asked),), kw_only=True, frozen=True
        )
        asked = asked_type(**msgspec.structs.asdict(asked), source=source)
    else:
        asked = msgspec.structs.replace(asked, source=source)
    ear = await bench.ask(asked)
    (path, body) = bench.remote.asked[-1]
    assert (ear.text(), path) == (TEXT, "/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["response_format"], body["stop"]) == ({"type": "json_object"}, ["\n"])
    assert not {"prompt", "top_k", "return_token_ids", "cache_salt"} & set(body)
