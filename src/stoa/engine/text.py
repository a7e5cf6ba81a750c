"""Tokens of one sequence to text as they come: whole characters only, and stop strings found at once."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from stoa.engine.tokenizer import Tokenizer

_LOST = "�"  # what a byte that is not UTF-8 becomes


class _Decoder(Protocol):
    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class TextStream:
    """Text of one generated sequence, piece by piece.

    All text returned, joined, is `tokenizer.decode(all ids)`, or its part before the first stop string
    (through it, with `include_stop`). First is the one that is complete first; of several complete at the
    same character, the longest. One exception: of SentencePiece byte tokens that together are not UTF-8,
    decode() also gives up the whole characters before the fault, which a stream has shown by then.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], include_stop: bool, skip_special_tokens: bool
    ) -> None:
        self._stops = tuple(s for s in stop if s)
        self._longest = max(map(len, self._stops), default=0)
        self._include_stop = include_stop
        self._decoder = _decoder(tokenizer, skip_special_tokens)
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._held = ""  # the beginning of a stop string, perhaps
        self.matched: str | None = None

    def push(self, token_id: int, may_stop: bool = True) -> tuple[str, str | None]:
        """(text that may be shown now, the stop string that this token completed or None). After a stop
        string nothing more is released. With `may_stop` false (min_tokens) stop strings count as text."""
        if token_id in self._skip or self.matched is not None:
            return "", None
        text = self._decoder.push(token_id)
        if not self._stops:
            return text, None
        if not text:
            return "", None
        text = self._held + text
        if may_stop:
            found = self._find(text)
            if found is not None:
                start, self.matched = found
                self._held = ""
                return text[: start + len(self.matched) * self._include_stop], self.matched
        keep = len(text) - self._partial(text)
        self._held = text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """The rest, once no more tokens come; "" after a stop string."""
        if self.matched is not None:
            return ""
        rest, self._held = self._held + self._decoder.finish(), ""
        return rest

    def _find(self, text: str) -> tuple[int, str] | None:
        """(start, stop string) of the stop string in `text` that ends first."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return best and best[1:]

    def _partial(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = 0
        for stop in self._stops:
            first = stop[0]
            at = text.find(first, max(0, len(text) - len(stop) + 1))
            while at >= 0 and len(text) - at > longest:
                if stop.startswith(text[at:]):
                    longest = len(text) - at
                    break
                at = text.find(first, at + 1)
        return longest


def _decoder(tokenizer: Tokenizer, skip_special_tokens: bool) -> _Decoder:
    if tokenizer.decoding == "bytes":
        return _ByteDecoder(tokenizer)
    if tokenizer.decoding == "pieces":
        return _PieceDecoder(tokenizer)
    return _LibraryDecoder(tokenizer, skip_special_tokens)


class _ByteDecoder:
    """Byte-level BPE: the tokens' bytes are one UTF-8 stream."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._bytes(token_id))

    def finish(self) -> str:
        return self._decode(b"", True)


class _PieceDecoder:
    """SentencePiece with byte fallback: pieces are text, runs of byte tokens are UTF-8 or lost."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._piece = tokenizer.piece
        self._strip, self._strips = tokenizer.strip_start  # strips: how many may still go
        self._run = b""  # the beginning of a character
        self._broken = False  # this run of bytes had a fault: the rest of it is lost too

    def push(self, token_id: int) -> str:
        piece = self._piece(token_id)
        if isinstance(piece, int):
            text = self._push_byte(piece)
        else:
            text = _LOST * len(self._run) + piece
            self._run, self._broken = b"", False
        return self._stripped(text) if self._strips else text

    def finish(self) -> str:
        rest, self._run = _LOST * len(self._run), b""
        return rest

    def _push_byte(self, byte: int) -> str:
        self._run += bytes([byte])
        run = self._run
        try:
            text = _LOST * len(run) if self._broken else run.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            self._broken, text = True, _LOST * len(run)
        self._run = b""
        return text

    def _stripped(self, text: str) -> str:
        while text and self._strips and text[0] == self._strip:
            text, self._strips = text[1:], self._strips - 1
        if text:
            self._strips = 0
        return text


class _LibraryDecoder:
    """Any other decoder: the library's stream, and at the end what decode() has beyond it."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._step = tokenizer.decode_stream(skip_special_tokens)
        self._ids: list[int] = []
        self._released = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        try:
            text = self._step(token_id) or ""
        except Exception:  # bare, from the library: the text before this token has changed
            return ""  # finish() shows the rest
        self._released += len(text)
        return text

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip_special_tokens)[self._released :]
