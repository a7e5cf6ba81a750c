"""Tool calls: found in the text of each format, and forced by a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError

from stoa.engine.grammar import GrammarCompiler
from stoa.engine.request import Grammar
from stoa.engine.tokenizer import Tokenizer
from stoa.server.tool_calls import HERMES, LLAMA, MISTRAL, CallParser, ToolFormat
from stoa.server.tools import detect_format
from tests.server.conftest import make_service, official
from tests.server.fakes import LLAMA as LLAMA_TEMPLATE
from tests.server.fakes import MARKS, PLAIN, QWEN, FakeReplica, make_tokenizer
from tests.server.fakes import MISTRAL as MISTRAL_TEMPLATE

HI: Any = [{"role": "user", "content": "hi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = '{"name": "weather", "arguments": {"city": "Köln {\\"", "days": 2}}'
ARGUMENTS = '{"city": "Köln {\\"", "days": 2}'
LLAMA_CALL = CALL.replace("arguments", "parameters")
Calls = list[tuple[str, str]]

# format, text, content, calls
PARSES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, "Just text.", "Just text.", []),
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [("weather", ARGUMENTS)]),
    (
        HERMES,
        f'I look.\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call>\n',
        "I look.",
        [("weather", ARGUMENTS), ("time", "{}")],
    ),
    (HERMES, f"<tool_call>{CALL}{CALL}</tool_call>", "", [("weather", ARGUMENTS)] * 2),
    (HERMES, '<tool_call>{"arguments": {"a": [1]}, "name": "f"}</tool_call>', "", [("f", '{"a": [1]}')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [("f", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": null, "id": 3}', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    (HERMES, "a <tool_call> b", "a <tool_call> b", []),
    (HERMES, "a <tool_call>[1]</tool_call>", "a <tool_call>[1]</tool_call>", []),
    (HERMES, '<tool_call>{"a" 1}', '<tool_call>{"a" 1}', []),
    (HERMES, '<tool_call>{"name": 3, "arguments": {}}', '<tool_call>{"name": 3, "arguments": {}}', []),
    (HERMES, "1 < 2 <tool", "1 < 2 <tool", []),
    (HERMES, '<tool_call>{"na', '<tool_call>{"na', []),
    (LLAMA, LLAMA_CALL, "", [("weather", ARGUMENTS)]),
    (LLAMA, f"\n<|python_tag|>{LLAMA_CALL}; {LLAMA_CALL}", "", [("weather", ARGUMENTS)] * 2),
    (LLAMA, f"Look: {LLAMA_CALL}", f"Look: {LLAMA_CALL}", []),
    (LLAMA, '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    (LLAMA, '{"name": "time", "age": 3}', '{"name": "time", "age": 3}', []),
    (LLAMA, ' {"answer": [1, {"a": 2}]} ', ' {"answer": [1, {"a": 2}]} ', []),
    (LLAMA, "<|pyth", "<|pyth", []),
    (MISTRAL, f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("weather", ARGUMENTS)] * 2),
    (MISTRAL, f"Well. [TOOL_CALLS][{CALL}]", "Well.", [("weather", ARGUMENTS)]),
    (MISTRAL, "[TOOL", "[TOOL", []),
]


def parse(form: ToolFormat, pieces: list[str], *, parallel: bool = True) -> tuple[str, Calls]:
    """Content and calls, put together from what each piece brings, as a client does."""
    parser = CallParser(form, {"weather", "time"}, parallel=parallel)
    news = [*map(parser.push, pieces), parser.finish()]
    calls: list[list[str]] = []
    for _, deltas in news:
        for delta in deltas:
            if delta.index == len(calls):
                assert delta.id
                assert delta.name
                calls.append([delta.name, ""])
            else:
                assert delta.id is delta.name is None
            calls[delta.index][1] += delta.arguments
    assert parser.num_calls == len(calls) or not parallel
    return "".join(content for content, _ in news), [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(("form", "text", "content", "calls"), PARSES)
def test_calls_are_found(form: ToolFormat, text: str, content: str, calls: Calls) -> None:
    """At once, character by character, and cut anywhere: always the same."""
    assert parse(form, [text]) == (content, calls)
    assert parse(form, list(text)) == (content, calls)
    for cut in range(len(text)):
        assert parse(form, [text[:cut], text[cut:]]) == (content, calls)


@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL]),
    st.lists(
        st.sampled_from([*MARKS, *'{}[]":,\\ a', '"name"', '"arguments"', '"time"', CALL, LLAMA_CALL]),
        max_size=14,
    ),
)
def test_any_text_is_parsed(form: ToolFormat, pieces: list[str]) -> None:
    """Nothing breaks the parser, and chunking makes no difference."""
    assert parse(form, pieces) == parse(form, ["".join(pieces)]) == parse(form, list("".join(pieces)))


def test_one_call_if_not_parallel() -> None:
    """Later ones are dropped."""
    text = f"<tool_call>{CALL}</tool_call>" * 2
    assert parse(HERMES, list(text), parallel=False) == ("", [("weather", ARGUMENTS)])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN, HERMES),
        (LLAMA_TEMPLATE, LLAMA),
        (MISTRAL_TEMPLATE, MISTRAL),
        (PLAIN, None),
        (None, None),
        ("{{ tools | tojson }}<tool_call><function=f>", None),
        ("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}" + QWEN, HERMES),
    ],
)
def test_the_format_is_read_off_the_template(
    tmp_path: Path, template: str | None, expected: ToolFormat | None
) -> None:
    """By what it makes of a call; unknown ways of calling are none."""
    assert detect_format(make_tokenizer(tmp_path, template)) is expected


# -- through the API


@pytest.fixture
def tool_replica(qwen: Tokenizer) -> FakeReplica:
    return FakeReplica(qwen, text=f"I look.\n<tool_call>\n{CALL}\n</tool_call>")


@pytest.fixture
async def caller(tool_replica: FakeReplica) -> AsyncIterator[AsyncOpenAI]:
    async with official(make_service(tool_replica)) as client:
        yield client


async def test_a_call(caller: AsyncOpenAI, tool_replica: FakeReplica) -> None:
    """Name, arguments, id and reason; the template has seen the tools as they were sent."""
    answer = await caller.chat.completions.create(model="org/base", messages=HI, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert (call.function.name, json.loads(call.function.arguments)["days"]) == ("weather", 2)
    request = tool_replica.requests[0]
    assert json.dumps(TOOLS[1]) in tool_replica.tokenizer.decode(request.prompt_token_ids)
    assert request.params.grammar is None


async def test_a_streamed_call(caller: AsyncOpenAI) -> None:
    """The name in one delta, arguments in several; the reason is tool_calls."""
    stream = await caller.chat.completions.create(model="org/base", messages=HI, tools=TOOLS, stream=True)
    content, names, parts, reason = "", [], [], None
    async for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            names += [call.function.name] if call.function.name else []
            parts.append(call.function.arguments or "")
    assert (content, names, "".join(parts), reason) == ("I look.", ["weather"], ARGUMENTS, "tool_calls")
    assert len(parts) > 5


async def test_no_call_is_plain_text(caller: AsyncOpenAI, tool_replica: FakeReplica) -> None:
    """With tools at hand the model may still just answer; "none" hides them from it."""
    tool_replica.text = "Nice weather {"
    answer = await caller.chat.completions.create(model="org/base", messages=HI, tools=TOOLS)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Nice weather {", "stop")
    await caller.chat.completions.create(model="org/base", messages=HI, tools=TOOLS, tool_choice="none")
    decode = tool_replica.tokenizer.decode
    assert "weather" not in decode(tool_replica.requests[1].prompt_token_ids)


async def test_calls_in_the_history(caller: AsyncOpenAI, tool_replica: FakeReplica) -> None:
    """Arguments reach the template as an object; text that is not JSON is refused by name."""
    call: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
    turns: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    await caller.chat.completions.create(model="org/base", messages=turns, tools=TOOLS)
    rendered = tool_replica.tokenizer.decode(tool_replica.requests[0].prompt_token_ids, False)
    assert '{"name": "weather", "arguments": {"a": 1}}' in rendered
    assert "<|im_start|>tool\nrain" in rendered
    for wrong in ("{", "[1]"):
        call["function"]["arguments"] = wrong
        with pytest.raises(BadRequestError) as caught:
            await caller.chat.completions.create(model="org/base", messages=turns, tools=TOOLS)
        assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


async def test_mistral_ids_have_nine_characters(tmp_path: Path) -> None:
    """Its template insists; its mark is a special token, so special tokens are kept in the text."""
    tokenizer = make_tokenizer(tmp_path, MISTRAL_TEMPLATE, special=("[TOOL_CALLS]",))
    replica = FakeReplica(tokenizer, text=f"[TOOL_CALLS] [{CALL}]")
    async with official(make_service(replica)) as client:
        answer = await client.chat.completions.create(model="org/base", messages=HI, tools=TOOLS)
    assert answer.choices[0].message.tool_calls is not None
    assert len(answer.choices[0].message.tool_calls[0].id) == 9
    assert not replica.requests[0].params.skip_special_tokens


# -- forced calls


def walk(grammar: Grammar, tokenizer: Tokenizer, seed: int) -> str:
    """A random text of the grammar."""
    state = GrammarCompiler(tokenizer).compile(grammar)
    rng, ids = random.Random(seed), []
    for _ in range(500):
        if state.complete:
            return tokenizer.decode(ids, skip_special_tokens=False)
        allowed = state.allowed_mask().nonzero()[0]
        token = int(rng.choice(allowed))
        assert state.accept(token)
        ids.append(token)
    raise AssertionError("no end")


@pytest.mark.parametrize("special", [(), MARKS])
@pytest.mark.parametrize(
    ("template", "form"), [(QWEN, HERMES), (LLAMA_TEMPLATE, LLAMA), (MISTRAL_TEMPLATE, MISTRAL)]
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_call_is_valid(
    tmp_path: Path, template: str, form: ToolFormat, special: tuple[str, ...], choice: Any
) -> None:
    """Whatever is chosen among the allowed tokens, the text parses as a call with fitting arguments."""
    replica = FakeReplica(make_tokenizer(tmp_path, template, special))
    async with official(make_service(replica)) as client:
        await client.chat.completions.create(
            model="org/base", messages=HI, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
        )
    grammar = replica.requests[0].params.grammar
    assert grammar is not None
    for seed in range(3):
        content, calls = parse(form, [walk(_closed(grammar), replica.tokenizer, seed)])
        assert content == ""
        ((name, arguments),) = calls
        assert name in ("weather", "time")
        assert choice == "required" or name == "weather"
        if name == "weather":
            assert set(json.loads(arguments)) == {"city", "days"}
            assert 1 <= json.loads(arguments)["days"] <= 9


def _closed(grammar: Grammar) -> Grammar:
    """The open object of the tool without parameters would let random choices ramble on."""
    source = grammar.source.replace('"arguments": {"type": "object"}', '"arguments": {"const": {}}')
    source = source.replace('"parameters": {"type": "object"}', '"parameters": {"const": {}}')
    return Grammar(kind=grammar.kind, source=source)


async def test_a_call_or_an_answer_of_a_schema(caller: AsyncOpenAI, tool_replica: FakeReplica) -> None:
    """With tools and response_format the output is one or the other."""
    schema: Any = {"name": "s", "schema": {"const": 7}}
    await caller.chat.completions.create(
        model="org/base",
        messages=HI,
        tools=TOOLS[:1],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    grammar = tool_replica.requests[0].params.grammar
    assert grammar is not None
    texts = {walk(grammar, tool_replica.tokenizer, seed)[:3] for seed in range(12)}
    assert texts == {"7", "<to"}
