"""Grammars followed by random choices among what they allow."""

from __future__ import annotations

import json
import random
import re

import pytest

from stoa.engine.grammar import GrammarCompiler, GrammarState
from stoa.engine.request import Grammar
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import InvalidRequest
from tests.engine.test_tokenizer import byte_level

VOCAB = 512  # the model's, larger than the tokenizer's
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 99}, "kind": {"enum": ["x", "yz"]}},
    "required": ["n", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, cache_size=4)


def walk(state: GrammarState, tokenizer: Tokenizer, rng: random.Random) -> str:
    """Random allowed tokens until the output is complete and an end token may come."""
    ids: list[int] = []
    end = tokenizer.eos_token_ids[0]
    for _ in range(400):
        mask = state.allowed_mask()
        assert mask.shape == (VOCAB,)
        assert not mask[tokenizer.vocab_size :].any()
        assert mask[end] == state.complete
        if state.finished or state.complete:
            return tokenizer.decode(ids)
        token = int(rng.choice(mask.nonzero()[0]))
        assert state.accept(token)
        ids.append(token)
    raise AssertionError("no end")


def test_every_output_fits_the_schema(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """Whatever is chosen among the allowed tokens, the result is JSON of the schema."""
    grammar = Grammar(kind="json_schema", source=json.dumps(SCHEMA))
    for seed in range(10):
        value = json.loads(walk(compiler.compile(grammar), tokenizer, random.Random(seed)))
        assert set(value) == {"n", "kind"}
        assert isinstance(value["n"], int)
        assert value["n"] <= 99
        assert value["kind"] in ("x", "yz")


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar(kind="regex", source="[a-c]{3}!"), "[a-c]{3}!"),
        (Grammar(kind="lark", source='start: "yes" | "no"'), "yes|no"),
        (Grammar(kind="regex", source="(Grüße|😀)+?x"), "(Grüße|😀)+x"),
    ],
)
def test_expressions(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, pattern: str) -> None:
    """Regular expressions and Lark grammars hold, across bytes of characters too."""
    for seed in range(5):
        assert re.fullmatch(pattern, walk(compiler.compile(grammar), tokenizer, random.Random(seed)))


def test_json_object_begins_with_a_brace(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """Any object, and nothing but an object."""
    state = compiler.compile(Grammar(kind="json_object"))
    starts = {tokenizer.token_bytes(int(i))[:1] for i in state.allowed_mask().nonzero()[0]}
    assert b"{" in starts
    assert starts <= {b"{", b" ", b"\t", b"\r", b"\n"}


def test_copies_go_their_own_way(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """A copy, and a second compile from the cache, are independent of the first state."""
    grammar = Grammar(kind="regex", source="ab|ba")
    a, b = (tokenizer.encode(c)[0] for c in "ab")
    one = compiler.compile(grammar)
    two, fresh = one.copy(), compiler.compile(grammar)
    assert one.accept(a)
    assert not one.accept(a)
    assert one.accept(b)
    assert one.finished
    assert two.accept(b)
    assert not two.finished
    assert fresh.allowed_mask()[[a, b]].all()


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="json_schema", source="{"),
        Grammar(kind="json_schema", source="[]"),
        Grammar(kind="json_schema", source='{"type": "nope"}'),
        Grammar(kind="json_schema", source='{"$ref": "http://example.com/x"}'),
        Grammar(kind="json_schema", source='{"a":' * 5000),
        Grammar(kind="json_schema", source='"' + "x" * 300_000 + '"'),
        Grammar(kind="regex", source="(("),
        Grammar(kind="lark", source="start: missing"),
    ],
)
def test_malformed_grammars_are_refused(compiler: GrammarCompiler, grammar: Grammar) -> None:
    """With the reason, and the field that it came from."""
    with pytest.raises(InvalidRequest, match="output format") as caught:
        compiler.compile(grammar)
    assert caught.value.param == "response_format"
    assert len(caught.value.message) < 1200
