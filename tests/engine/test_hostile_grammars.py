"""A grammar that crashes, blocks or outgrows its compiler costs its own request, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from stoa.demo import BASE_DIR
from stoa.engine import Engine, EngineConfig, GenerationRequest, Grammar, SamplingParams
from tests.engine.driving import Answer, assert_all_returned, drain

WORD = "<|bos|><|user|>marble<|end|><|assistant|>"
SLOW = {"allOf": [{"type": "string", "pattern": f"^(.*a.{{{i}}}b){{9}}.*$"} for i in range(1, 80)]}
HOSTILE = {
    "refers to itself": {"$ref": "#"},
    "refer to each other": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "itself inside": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "takes for ever": SLOW,
    "too many choices": {"anyOf": [{"type": "object", "properties": {f"k{i}": {}}} for i in range(300)]},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(EngineConfig(model=str(BASE_DIR), pool_bytes=1 << 26, host_adapter_bytes=1 << 26))
    assert made.grammars is not None
    for probe in made.grammars._probes:
        probe.timeout_s = 1.0
    yield made
    made.close()


def ask(engine: Engine, id: str, schema: object, n: int = 1) -> GenerationRequest:
    assert engine.tokenizer is not None
    grammar = None if schema is None else Grammar(kind="json_schema", source=json.dumps(schema))
    params = SamplingParams(max_tokens=20, temperature=0, grammar=grammar)
    return GenerationRequest(id=id, prompt_token_ids=engine.tokenizer.encode(WORD), params=params, n=n)


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_schema_fails_alone(engine: Engine, schema: object) -> None:
    """It ends with an error that blames the field; a neighbour of the same moment is answered."""
    answers = drain(engine, [ask(engine, "bad", schema, n=2), ask(engine, "good", None)])
    assert answers["good", 0].text == "marble"
    failed = [a for (id, _), a in answers.items() if id == "bad"]
    assert [a.finish for a in failed] == ["error"]
    last = failed[0].last
    assert last is not None
    assert (last.error_code, last.error_param) == ("invalid_request_error", "response_format")
    assert_all_returned(engine)


def test_neighbours_go_on_while_a_schema_compiles(engine: Engine) -> None:
    """The step loop does not wait for the compiler."""
    engine.add_request(ask(engine, "slow", SLOW | {"title": "again"}))
    engine.add_request(ask(engine, "good", None))
    answers: dict[tuple[str, int], Answer] = {}
    text = ""
    while ("good", 0) not in answers:
        for event in engine.step():
            assert event.request_id == "good"
            text += event.text
            if event.finish_reason:
                answers["good", 0] = Answer()
    assert text == "marble"
    engine.cancel("slow")
    assert_all_returned(engine)


def test_a_fair_schema_is_followed_by_every_choice(engine: Engine) -> None:
    """Compiled once, followed by each choice on its own."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    answers = drain(engine, [ask(engine, "r", schema, n=3)])
    assert len(answers) == 3
    for answer in answers.values():
        assert answer.finish in ("stop", "length")
        if answer.finish == "stop":
            assert isinstance(json.loads(answer.text)["a"], bool)
