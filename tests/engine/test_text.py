"""Incremental text against decode() of the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models

from stoa.engine.text import TextStream
from stoa.engine.tokenizer import Tokenizer
from tests.engine.test_tokenizer import byte_level, sentencepiece

LOST = "�"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(sentencepiece(tmp_path_factory.mktemp("spm")))


def stream(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), include: bool = False, skip: bool = True
) -> tuple[str, str | None, int]:
    """(text, stop string, tokens taken)."""
    text, out = TextStream(tokenizer, stop, include, skip), ""
    for taken, token_id in enumerate(ids, 1):
        piece, matched = text.push(token_id)
        out += piece
        if matched is not None:
            return out + text.finish(), matched, taken
    return out + text.finish(), None, len(ids)


def expected_stop(text: str, stop: tuple[str, ...]) -> tuple[str, str] | None:
    """The truth: read character by character until a stop string is complete; the longest counts."""
    for end in range(1, len(text) + 1):
        fits = [s for s in stop if text[:end].endswith(s)]
        if fits:
            found = max(fits, key=len)
            return text[: end - len(found)], found
    return None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 390), max_size=30), skip=st.booleans())
def test_pieces_join_to_the_whole(bpe: Tokenizer, ids: list[int], skip: bool) -> None:
    """Any ids, valid UTF-8 or not, special or unknown: the pieces are decode() of all."""
    assert stream(bpe, ids, skip=skip)[0] == bpe.decode(ids, skip)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab é你😀\n"), max_size=20), skip=st.booleans())
def test_sentencepiece_pieces_join_to_the_whole(spm: Tokenizer, text: str, skip: bool) -> None:
    """▁ becomes a space, one leading space goes, byte tokens become characters."""
    ids = spm.encode(text)
    assert stream(spm, ids, skip=skip)[0] == spm.decode(ids, skip)


def test_a_broken_run_of_byte_tokens_is_lost(spm: Tokenizer) -> None:
    """Byte tokens that are not UTF-8 become U+FFFD each, at the end too."""
    byte = [3 + b for b in range(256)]
    for run in ([0xE4, 0xBD], [0xFF, 0xFE], [0xE4, 0x41, 0x42], [0xF0, 0x9F, 0x98]):
        for ids in ([byte[b] for b in run], [byte[b] for b in run] + spm.encode("ab")[1:]):
            assert stream(spm, ids)[0] == spm.decode(ids)


def test_only_whole_characters_are_released(bpe: Tokenizer) -> None:
    """A character spread over four tokens appears with the last of them."""
    ids = [next(i for i in range(bpe.vocab_size) if bpe.token_bytes(i) == bytes([b])) for b in "😀".encode()]
    text = TextStream(bpe, (), False, True)
    assert [text.push(i)[0] for i in ids] == ["", "", "", "😀"]
    text = TextStream(bpe, (), False, True)
    assert [text.push(i)[0] for i in ids[:3]] == ["", "", ""]
    assert text.finish() == LOST


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from("ab é"), max_size=25),
    stop=st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=5), max_size=4).map(tuple),
    include=st.booleans(),
)
def test_stops_at_the_first_stop_string(
    bpe: Tokenizer, text: str, stop: tuple[str, ...], include: bool
) -> None:
    """The text ends before the stop string that is complete first (or with it), at the token that completes
    it; nothing of it was shown before."""
    ids = bpe.encode(text)
    out, matched, taken = stream(bpe, ids, stop, include)
    truth = expected_stop(text, stop)
    if truth is None:
        assert (out, matched) == (text, None)
        return
    before, found = truth
    assert (out, matched) == (before + found * include, found)
    assert expected_stop(bpe.decode(ids[: taken - 1]).replace(LOST, ""), stop) is None


def test_stop_strings_wait_for_min_tokens(bpe: Tokenizer) -> None:
    """With may_stop false a stop string is text like any other."""
    text = TextStream(bpe, ("a",), False, True)
    first, second = bpe.encode("a")[0], bpe.encode("b")[0]
    assert text.push(first, may_stop=False) == ("a", None)
    assert text.push(second) == ("b", None)
    assert text.push(first) == ("", "a")
    assert text.push(second) == ("", None)
    assert text.finish() == ""


def test_other_decoders_stream_through_the_library(tmp_path: Path) -> None:
    """WordPiece, Metaspace: the pieces still join to decode()."""
    for name, decoder in (("w", decoders.WordPiece()), ("m", decoders.Metaspace())):
        vocab = {"hello": 0, "##s": 1, "▁a": 2, "b": 3, "▁": 4, ",": 5, "[UNK]": 6}
        hf = HfTokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        hf.decoder = decoder
        (tmp_path / name).mkdir()
        hf.save(str(tmp_path / name / "tokenizer.json"))
        tokenizer = Tokenizer(tmp_path / name)
        rng = random.Random(0)
        for _ in range(50):
            ids = [rng.randrange(7) for _ in range(10)]
            assert stream(tokenizer, ids)[0] == tokenizer.decode(ids)
